"""transformers in a replica, where vLLM is absent: requests that arrive together are one batch (`@serve.batch`)."""

import asyncio
import secrets
from collections.abc import AsyncGenerator

from ray import serve

from aqe.config.sample import EngineConfig
from aqe.errors import InputError
from aqe.expand.recipe import Recipe
from aqe.sample.engine import Generated, Request, Sampling
from serve.engine import Decoding, Piece

#: Requests of one batch, and how long the first of them waits for others.
BATCH, WAIT_S = 32, 0.005


class TransformersServing:
    """Implements `serve.engine.ServingEngine`. A stream has one piece: a batch is decoded to its end."""

    name = "transformers"

    def __init__(self, recipe: Recipe, config: EngineConfig) -> None:
        from aqe.sample.engine_transformers import TransformersEngine

        self._engine = TransformersEngine(str(recipe.path), config, Sampling(max_tokens=1))
        self.max_model_len: int = self._engine.max_len
        # Here, not on the method: the decorator has one queue a function, on the event loop that used it first.
        self._batch = serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)(self._generated)

    async def stream(self, prompt: str, decoding: Decoding, whole: bool) -> AsyncGenerator[Piece]:
        generated: Generated | str = await self._batch((prompt, decoding))
        if isinstance(generated, str):
            raise InputError(generated)
        yield Piece(generated.raw, generated.token_ids, generated.finish_reason)

    async def _generated(self, asked: list[tuple[str, Decoding]]) -> list[Generated | str]:
        # In a thread: the replica goes on taking requests and answering health checks.
        return await asyncio.to_thread(self._generate, asked)

    def _generate(self, asked: list[tuple[str, Decoding]]) -> list[Generated | str]:
        """Requests that are decoded alike are generated together."""
        alike: dict[Sampling, list[int]] = {}
        for i, (_, d) in enumerate(asked):
            alike.setdefault(Sampling(d.max_tokens, d.temperature, d.top_k, d.top_p, stop=d.stop), []).append(i)
        answers: dict[int, Generated | str] = {}
        for sampling, places in alike.items():
            seeds = [asked[i][1].seed for i in places]
            requests = [
                Request(asked[i][0], 1, secrets.randbits(62) if seed is None else seed)
                for i, seed in zip(places, seeds, strict=True)
            ]
            generated = self._engine.with_sampling(sampling).generate(requests)
            answers |= {i: m if isinstance(m, str) else m[0] for i, m in zip(places, generated, strict=True)}
        return [answers[i] for i in range(len(asked))]

    async def check(self) -> None:
        """Nothing to ask: the engine is in this process."""

    def close(self) -> None:
        """Nothing to end."""
