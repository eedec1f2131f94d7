"""transformers in a replica, where vLLM is absent: requests of a caller that arrive together are one batch.

Up to THREADS callers' batches are computed at once, each caller's in a thread of its own: these do not wait for the end
of another's, one more does. Not by `serve.batch`, which has one queue for all and no way to drop what nobody waits for
any more from a batch in work.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aqe.config.sample import EngineConfig
from aqe.errors import InputError
from aqe.expand.recipe import Recipe
from aqe.sample.engine import Generated, Request, Sampling
from serve.engine import Job, Piece
from serve.pulse import Pulse

#: Sequences of one batch, and how long the first of them waits for others.
BATCH, WAIT_S = 32, 0.005
#: Callers whose batches are computed at once.
THREADS = 4


@dataclass(eq=False)
class _Asked:
    job: Job
    answer: asyncio.Future[Generated]
    wanted: bool = True

    @property
    def sampling(self) -> Sampling:
        decoding = self.job.decoding
        return Sampling(decoding.max_tokens, decoding.temperature, decoding.top_k, decoding.top_p, stop=decoding.stop)


class _Batch:
    """Sequences that are decoded alike and together. Implements `aqe.sample.engine.Watch`."""

    def __init__(self, asked: list[_Asked], pulse: Pulse) -> None:
        self.asked = asked
        self._pulse = pulse

    def step(self) -> None:
        self._pulse.beat()

    def wanted(self, request: int) -> bool:
        return self.asked[request].wanted


class TransformersServing:
    """Implements `serve.engine.ServingEngine`. A stream has one piece: a batch is decoded to its end."""

    name = "transformers"
    places = BATCH

    def __init__(self, recipe: Recipe, config: EngineConfig) -> None:
        from aqe.sample.engine_transformers import TransformersEngine

        self._engine = TransformersEngine(str(recipe.path), config, Sampling(max_tokens=1))
        self.max_model_len: int = self._engine.max_len
        self.pulse = Pulse()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
        self._waiting: dict[str, list[_Asked]] = {}
        self._work: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[_Asked] = set()

    async def stream(self, job: Job, number: int) -> AsyncGenerator[Piece]:
        asked = _Asked(job, asyncio.get_running_loop().create_future())
        self._wanted.add(asked)
        self._waiting.setdefault(job.caller, []).append(asked)
        if job.caller not in self._work:
            self._work[job.caller] = asyncio.create_task(self._batches(job.caller))
        try:
            generated = await asked.answer
        finally:
            # Seen between two steps of decoding.
            asked.wanted = False
            self._wanted.discard(asked)
        yield Piece(generated.raw, generated.token_ids, generated.finish_reason)

    async def _batches(self, caller: str) -> None:
        """One caller's, one after the other, until it asks for nothing more."""
        waiting = self._waiting[caller]
        try:
            while waiting:
                await asyncio.sleep(WAIT_S)
                wanted = [asked for asked in waiting if asked.wanted]
                alike = [asked for asked in wanted if asked.sampling == wanted[0].sampling][:BATCH]
                waiting[:] = [asked for asked in wanted if asked not in alike]
                if alike:
                    await self._answer(_Batch(alike, self.pulse))
        finally:
            del self._work[caller], self._waiting[caller]

    async def _answer(self, batch: _Batch) -> None:
        try:
            # In a thread: the replica goes on taking requests and answering health checks.
            made = await asyncio.get_running_loop().run_in_executor(self._threads, self._generate, batch)
        except Exception as error:
            for asked in batch.asked:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        for asked, generated in zip(batch.asked, made, strict=True):
            if asked.answer.done():
                continue  # Its reader has gone.
            if isinstance(generated, str):
                asked.answer.set_exception(InputError(generated))
            else:
                asked.answer.set_result(generated[0])

    def _generate(self, batch: _Batch) -> list[list[Generated] | str]:
        seeds = [asked.job.decoding.seed for asked in batch.asked]
        requests = [
            Request(asked.job.prompt, 1, secrets.randbits(62) if seed is None else seed)
            for asked, seed in zip(batch.asked, seeds, strict=True)
        ]
        return self._engine.with_sampling(batch.asked[0].sampling).generate(requests, batch)

    async def check(self) -> None:
        """Nothing to ask: the engine is in this process."""

    def close(self) -> None:
        """Let no thread decode on."""
        for asked in self._wanted:
            asked.wanted = False
        self._threads.shutdown(wait=False, cancel_futures=True)
