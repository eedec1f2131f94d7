"""The service on an engine that makes the same token again and again: no weights, no threads, no Ray."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from aqe.config.serve import ServeConfig
from aqe.expand.recipe import Recipe
from aqe.expand.settings import ExpanderSettings
from aqe.prompts import resolve
from aqe.reasoning import Reasoning
from serve.engine import Job, Piece
from serve.pulse import Pulse
from serve.service import ExpandService


class Characters:
    """A tokenizer: one token for each character."""

    bos_token = eos_token = "<end>"
    eos_token_id = 0
    chat_template = None
    all_special_tokens: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.added_tokens_decoder: dict[int, Any] = {}

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        """There are no special ones."""
        return []

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}


class Steady:
    """Implements `serve.engine.ServingEngine`: each sequence gets a token every `step_s` seconds, to its end."""

    name = "steady"
    max_model_len = 256

    def __init__(self, places: int = 4, step_s: float = 0.0) -> None:
        self.places = places
        self.step_s = step_s
        self.pulse = Pulse()
        self.begun: list[Job] = []
        self.running = 0
        self.most = 0
        self.tokens = 0

    async def stream(self, job: Job, number: int) -> AsyncGenerator[Piece]:
        self.begun.append(job)
        self.running += 1
        self.most = max(self.most, self.running)
        last = job.decoding.max_tokens
        try:
            for number in range(1, last + 1):
                await asyncio.sleep(self.step_s)
                self.tokens += 1
                self.pulse.beat()
                if not job.whole:
                    yield Piece("x", (1,), "length" if number == last else None)
            if job.whole:
                yield Piece("x" * last, (1,) * last, "length")
        finally:
            self.running -= 1

    async def check(self) -> None:
        """It lives."""

    def close(self) -> None:
        """Nothing to end."""


def steady(engine: Steady, **config: Any) -> ExpandService:
    """The service around it."""
    tokenizer = Characters()
    settings = ExpanderSettings(prompt=resolve("passage"), query_weight=2, max_tokens=8)
    recipe = Recipe(Path("/nowhere"), settings, tokenizer, Reasoning(tokenizer))
    return ExpandService(ServeConfig.model_validate({"model": "steady/model", **config}), recipe, engine)


class Ticking(Steady):
    """An engine with a clock of its own, so that a test takes no time: each step gives all sequences in work a token,
    and is the slower the more there are (as vLLM on a CPU: 8 cost 1.5 times, 32 three times, 64 four and a half)."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self.now = 0.0
        self._step: asyncio.Event | None = None

    def clock(self) -> float:
        return self.now

    async def stream(self, job: Job, number: int) -> AsyncGenerator[Piece]:
        self.begun.append(job)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(job.decoding.max_tokens):
                self._step = self._step or asyncio.Event()
                await self._step.wait()
            tokens = job.decoding.max_tokens
            yield Piece("x" * tokens, (1,) * tokens, "length")
        finally:
            self.running -= 1

    async def work(self) -> None:
        """Make steps for ever."""
        while True:
            # All who can go on do.
            for _ in range(30):
                await asyncio.sleep(0)
            self.now += 0.01 * (1 + self.running / 16)
            if step := self._step:
                self._step = None
                step.set()
