"""The transformers engine in a replica: it looks up between the steps of decoding, and callers do not share batches."""

import asyncio
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


class Slow:
    """The real engine, whose steps take a while; counts them by the thread that makes them."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.steps: list[int] = []

    def with_sampling(self, sampling: Any) -> Any:
        engine = self._engine.with_sampling(sampling)
        pick = engine._pick

        def slow(*args: Any) -> Any:
            self.steps.append(threading.get_ident())
            time.sleep(0.02)
            return pick(*args)

        engine._pick = slow
        # No token is the last one.
        engine.ends = frozenset()
        return engine


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> TransformersServing:
    recipe = load_recipe(aligned(tmp_path_factory.mktemp("transformers")))
    return TransformersServing(recipe, EngineConfig())


@pytest.fixture
def slow(loaded: TransformersServing) -> Iterator[tuple[TransformersServing, Slow]]:
    engine = loaded._engine
    slowed = Slow(engine)
    loaded._engine = slowed  # type: ignore[assignment]
    yield loaded, slowed
    loaded._engine = engine


def job(caller: str, prompt: str, tokens: int) -> Job:
    return Job(caller, prompt, (), Decoding(tokens), whole=True)


async def made(serving: TransformersServing, asked: Job) -> int:
    """Tokens of its answer."""
    return sum([len(piece.token_ids) async for piece in serving.stream(asked, 0)])


def test_decoding_ends_when_nobody_waits_for_it(slow: tuple[TransformersServing, Slow]) -> None:
    serving, engine = slow

    async def measured() -> None:
        left = asyncio.create_task(made(serving, job("a", "long", 200)))
        while len(engine.steps) < 5:
            await asyncio.sleep(0.01)
        left.cancel()
        # The same caller's next does not wait for what was left: 195 steps.
        assert await made(serving, job("a", "short", 5)) == 5
        assert len(engine.steps) < 100
        # Nor does a time-out leave anything running.
        engine.steps.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await made(serving, job("a", "long", 200))
        assert await made(serving, job("a", "short", 5)) == 5
        assert len(engine.steps) < 100

    asyncio.run(measured())


def test_who_stays_gets_the_whole_answer_when_another_of_the_batch_leaves(
    slow: tuple[TransformersServing, Slow],
) -> None:
    serving, engine = slow

    async def measured() -> None:
        both = [asyncio.create_task(made(serving, job("a", prompt, 30))) for prompt in ("stays", "leaves")]
        while len(engine.steps) < 5:
            await asyncio.sleep(0.01)
        both[1].cancel()
        assert await both[0] == 30 and len(engine.steps) == 30

    asyncio.run(measured())


def test_a_caller_does_not_wait_for_the_end_of_anothers_batch(slow: tuple[TransformersServing, Slow]) -> None:
    serving, engine = slow

    async def measured() -> None:
        heavy = [asyncio.create_task(made(serving, job("heavy", f"{i}", 200))) for i in range(3)]
        while len(engine.steps) < 5:
            await asyncio.sleep(0.01)
        for _ in range(3):
            assert await made(serving, job("light", "q", 5)) == 5
        assert not any(task.done() for task in heavy) and len(set(engine.steps)) == 2
        for task in heavy:
            task.cancel()

    asyncio.run(measured())


def test_steps_are_the_engines_pulse(slow: tuple[TransformersServing, Slow]) -> None:
    serving, engine = slow

    async def measured() -> None:
        asked = asyncio.create_task(made(serving, job("a", "x", 50)))
        while not engine.steps:
            await asyncio.sleep(0.01)
        for _ in range(5):
            marked, steps = time.monotonic(), len(engine.steps)
            while len(engine.steps) < steps + 3:
                await asyncio.sleep(0.01)
            assert serving.pulse.still_s < time.monotonic() - marked
        asked.cancel()

    asyncio.run(measured())
