"""The engine as requests use it: what they ask for is checked before any of it begins, counted, and watched."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from aqe.config.serve import LimitsConfig
from aqe.observe import metrics
from aqe.prompts import token_ids
from serve.engine import Decoding, EngineStopped, Job, Piece, ServingEngine, check_length
from serve.fair import FairQueue
from serve.flights import Flights
from serve.rates import Rate
from serve.refused import Refused


class Generator:
    """One engine, and the tokenizer of its model."""

    def __init__(self, engine: ServingEngine, tokenizer: Any, limits: LimitsConfig) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self._rate = Rate(limits.tokens_per_minute, "tokens that requests may make")
        self._most = min(limits.max_request_tokens, limits.tokens_per_minute or limits.max_request_tokens)
        self._queue = FairQueue(engine.places, limits.beside_others)
        self._flights: Flights[Piece] = Flights()
        metrics.begin(metrics.GENERATED_TOKENS, stage="serve")

    async def check(self) -> None:
        """Raises EngineStopped when the engine is dead, or has had work for too long without making a step."""
        await self.engine.check()
        still = self.engine.pulse.still_s
        if self._queue.running and still > self._limits.stuck_after_s:
            raise EngineStopped(
                f"the engine has {self._queue.running} sequences in work and made no token for {still:.0f} seconds"
            )

    def jobs(self, caller: str, prompt: str, decodings: list[Decoding], whole: bool) -> list[Job]:
        """A prompt's continuations, not begun yet. InputError when the prompt is empty or too long."""
        ids = tuple(token_ids(self._tokenizer, prompt))
        check_length(prompt, ids, decodings[0], self.engine.max_model_len)
        return [Job(caller, prompt, ids, decoding, whole) for decoding in decodings]

    async def admit(self, caller: str, jobs: Sequence[Job]) -> None:
        """Count the jobs of one request, before the first of them begins. Raises Refused where they are too much work.

        What they cost is what they may make: the number of sequences times their tokens.
        """
        tokens = sum(job.decoding.max_tokens for job in jobs)
        if tokens > self._most:
            message = (
                f"The request may make {tokens} tokens ({len(jobs)} sequences), and one request at most {self._most}. "
                "Ask for fewer queries, expansions or tokens at once."
            )
            raise Refused(422, "invalid_request_error", message)
        if tokens:
            await self._rate.take(caller, tokens)

    async def pieces(self, job: Job) -> AsyncGenerator[Piece]:
        """What the engine makes of a job. What a caller asks for twice at once is made once where it repeats."""
        source = self._flights.join(job, lambda: self._made(job)) if job.decoding.repeats else self._made(job)
        async with aclosing(source) as pieces:
            async for piece in pieces:
                yield piece

    async def _made(self, job: Job) -> AsyncGenerator[Piece]:
        """Of the engine itself, when the caller's turn has come."""
        started = time.monotonic()
        async with self._queue.turn(job.caller, len(job.ids) + job.decoding.max_tokens) as turn:
            if self._queue.running == 1:
                self.engine.pulse.beat()
            turn.used = len(job.ids)
            first = True
            async with aclosing(self.engine.stream(job, turn.number)) as stream:
                async for piece in stream:
                    turn.used += len(piece.token_ids)
                    if first:
                        metrics.seconds(metrics.FIRST_TOKEN, time.monotonic() - started)
                        first = False
                    metrics.count(metrics.GENERATED_TOKENS, len(piece.token_ids), stage="serve")
                    yield piece
