"""The transformers engine in a replica: it looks up between the steps of decoding, and callers do not share batches."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aqe.config.sample import EngineConfig
from aqe.expand.recipe import load_recipe
from serve.engine import Decoding, Job
from serve.engine_transformers import TransformersServing
from tests.tools.serve import aligned


class Stepwise:
    """The real engine; the thread that decodes first takes a step only when it is allowed. Holds who took each."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._turn = threading.Condition()
        self._allowed = 0.0
        self.steps: list[int] = []

    def allow(self, steps: float) -> None:
        with self._turn:
            self._allowed += steps
            self._turn.notify_all()

    async def reach(self, steps: int) -> None:
        while len(self.steps) < steps:
            await asyncio.sleep(0.01)

    def with_sampling(self, sampling: Any) -> Any:
        engine = self._engine.with_sampling(sampling)
        pick = engine._pick

        def step(*args: Any) -> Any:
            me = threading.get_ident()
            with self._turn:
                if not self.steps or self.steps[0] == me:
                    self._turn.wait_for(lambda: self.steps.count(me) < self._allowed, timeout=60)
                self.steps.append(me)
            return pick(*args)

        engine._pick = step
        # No token is the last one.
        engine.ends = frozenset()
        return engine


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> TransformersServing:
    recipe = load_recipe(aligned(tmp_path_factory.mktemp("transformers")))
    return TransformersServing(recipe, EngineConfig())


@pytest.fixture
def stepwise(loaded: TransformersServing) -> Iterator[tuple[TransformersServing, Stepwise]]:
    engine = loaded._engine
    steps = Stepwise(engine)
    loaded._engine = steps  # type: ignore[assignment]
    yield loaded, steps
    steps.allow(float("inf"))
    loaded._engine = engine


def job(caller: str, prompt: str, tokens: int) -> Job:
    return Job(caller, prompt, (), Decoding(tokens), whole=True)


async def made(serving: TransformersServing, asked: Job) -> int:
    """Tokens of its answer."""
    return sum([len(piece.token_ids) async for piece in serving.stream(asked, 0)])


async def leave(task: "asyncio.Task[int]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_decoding_ends_when_nobody_waits_for_it(stepwise: tuple[TransformersServing, Stepwise]) -> None:
    serving, engine = stepwise

    async def measured() -> None:
        left = asyncio.create_task(made(serving, job("a", "long", 200)))
        engine.allow(5)
        await engine.reach(5)
        await leave(left)
        engine.allow(float("inf"))
        # The same caller's next does not wait for what was left: 195 steps.
        assert await made(serving, job("a", "short", 5)) == 5
        assert len(engine.steps) < 20

    asyncio.run(measured())


def test_a_time_out_leaves_nothing_running(stepwise: tuple[TransformersServing, Stepwise]) -> None:
    serving, engine = stepwise

    async def measured() -> None:
        engine.allow(5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await made(serving, job("a", "long", 200))
        engine.allow(float("inf"))
        assert await made(serving, job("a", "short", 5)) == 5
        assert len(engine.steps) < 20

    asyncio.run(measured())


def test_who_stays_gets_the_whole_answer_when_another_of_the_batch_leaves(
    stepwise: tuple[TransformersServing, Stepwise],
) -> None:
    serving, engine = stepwise

    async def measured() -> None:
        both = [asyncio.create_task(made(serving, job("a", prompt, 30))) for prompt in ("stays", "leaves")]
        engine.allow(5)
        await engine.reach(5)
        await leave(both[1])
        engine.allow(float("inf"))
        assert await both[0] == 30 and len(engine.steps) == 30

    asyncio.run(measured())


def test_a_caller_does_not_wait_for_the_end_of_anothers_batch(stepwise: tuple[TransformersServing, Stepwise]) -> None:
    serving, engine = stepwise

    async def measured() -> None:
        heavy = [asyncio.create_task(made(serving, job("heavy", f"{i}", 200))) for i in range(3)]
        engine.allow(5)
        await engine.reach(5)
        for _ in range(3):
            assert await made(serving, job("light", "q", 5)) == 5
        # Theirs has not taken another step.
        assert not any(task.done() for task in heavy) and engine.steps.count(engine.steps[0]) == 5
        for task in heavy:
            await leave(task)

    asyncio.run(measured())


def test_steps_are_the_engines_pulse(stepwise: tuple[TransformersServing, Stepwise]) -> None:
    serving, engine = stepwise

    async def measured() -> None:
        asked = asyncio.create_task(made(serving, job("a", "x", 50)))
        for _ in range(5):
            marked, before = time.monotonic(), len(engine.steps)
            engine.allow(3)
            await engine.reach(before + 3)
            assert serving.pulse.still_s < time.monotonic() - marked
        await leave(asked)

    asyncio.run(measured())
