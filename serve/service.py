"""Queries become expansions: rules, cache, engine. No HTTP in here."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from cachetools import TTLCache

from aqe.config.data import PACKAGE, is_path
from aqe.config.sample import SampleConfig
from aqe.config.serve import ServeConfig
from aqe.expand.recipe import Expansion, Recipe, load_recipe
from aqe.expand.settings import SETTINGS
from aqe.observe import metrics
from serve.engine import Decoding, EngineStopped, Piece, ServingEngine, open_engine
from serve.schemas import Alternative, Expanded, ExpandedMany, ExpandMany, ExpandOne, Model, SearchRequest


class ExpandService:
    """One model in one replica."""

    def __init__(self, config: ServeConfig, recipe: Recipe, engine: ServingEngine) -> None:
        self.config = config
        self.recipe = recipe
        self.engine = engine
        self.model = config.model_id or _model_id(config.model)
        self._cache: TTLCache[Any, tuple[Expansion, ...]] = TTLCache(config.cache.size, config.cache.ttl_s)
        self._pattern = re.compile(config.skip.pattern) if config.skip.pattern else None
        self._in_work = 0
        self._progress = time.monotonic()
        metrics.begin(metrics.GENERATED_TOKENS, stage="serve")

    @classmethod
    async def open(cls, config: ServeConfig) -> "ExpandService":
        """Load the model. Raises InputError when it cannot be used."""
        recipe = load_recipe(config.model)
        return cls(config, recipe, await open_engine(recipe, config.engine))

    def describe(self) -> Model:
        """What is served."""
        return Model(
            id=self.model,
            created=int((self.recipe.path / "config.json").stat().st_mtime),
            owned_by="aqe",
            engine=self.engine.name,
            prompt=self.recipe.settings.prompt.name,
            max_tokens=self.recipe.settings.max_tokens,
            max_model_len=self.engine.max_model_len,
            aligned=(self.recipe.path / SETTINGS).exists(),
            search=self.config.search is not None,
        )

    async def check(self) -> None:
        """Raises EngineStopped when the engine is dead, or has had work for too long without making a token."""
        await self.engine.check()
        still = time.monotonic() - self._progress
        if self._in_work and still > self.config.limits.stuck_after_s:
            raise EngineStopped(f"the engine has {self._in_work} requests and made no token for {still:.0f} seconds")

    async def pieces(self, prompt: str, decoding: Decoding, whole: bool) -> AsyncGenerator[Piece]:
        """What the engine makes of a prompt, counted and watched."""
        started = time.monotonic()
        if self._in_work == 0:
            self._progress = started
        self._in_work += 1
        first = True
        try:
            async with aclosing(self.engine.stream(prompt, decoding, whole)) as stream:
                async for piece in stream:
                    self._progress = time.monotonic()
                    if first:
                        metrics.seconds(metrics.FIRST_TOKEN, self._progress - started)
                        first = False
                    metrics.count(metrics.GENERATED_TOKENS, len(piece.token_ids), stage="serve")
                    yield piece
        finally:
            self._in_work -= 1

    async def expand(self, query: str, options: ExpandOne | ExpandMany | SearchRequest, started: float) -> Expanded:
        """A query's expansions; `started` is the request's arrival (time.perf_counter)."""
        if self.skips(query, options):
            return self._answer(query, (Expansion(query, "", query, "skip", 0, 0),), started, cached=False)
        key = query, options.max_tokens, options.num_expansions
        if known := self.cached(key):
            return self._answer(query, known, started, cached=True)
        several = [self._generate(query, self._decoding(options, i)) for i in range(options.num_expansions)]
        # One is awaited as it is: a task of its own costs time.
        expansions = (await several[0],) if len(several) == 1 else tuple(await asyncio.gather(*several))
        return self._keep(key, query, expansions, started)

    async def expand_many(self, options: ExpandMany, started: float) -> ExpandedMany:
        """Several queries at once, in their order."""
        results = await asyncio.gather(*(self.expand(query, options, started) for query in options.queries))
        milliseconds = round((time.perf_counter() - started) * 1000, 3)
        return ExpandedMany(results=results, model=self.model, milliseconds=milliseconds)

    async def stream(self, query: str, options: ExpandOne, started: float) -> AsyncGenerator[str | Expanded]:
        """New text as it is made, then the answer."""
        key = query, options.max_tokens, options.num_expansions
        if options.num_expansions > 1 or self.skips(query, options) or key in self._cache:
            answer = await self.expand(query, options, started)
            if answer.expansion:
                yield answer.expansion
            yield answer
            return
        metrics.count(metrics.CACHE, 1, outcome="miss")
        async with aclosing(self._write(query, self._decoding(options, 0), whole=False)) as written:
            async for new in written:
                yield self._keep(key, query, (new,), started) if isinstance(new, Expansion) else new

    def skips(self, query: str, options: ExpandOne | ExpandMany | SearchRequest) -> bool:
        """The request or a rule says that this query needs no expansion."""
        rule = self.config.skip
        return (
            options.skip
            or (rule.max_words is not None and len(query.split()) > rule.max_words)
            or (self._pattern is not None and self._pattern.search(query) is not None)
        )

    def cached(self, key: tuple[str, int | None, int]) -> tuple[Expansion, ...] | None:
        """A kept answer. Counted: the hit rate is a metric."""
        known = self._cache.get(key)
        metrics.count(metrics.CACHE, 1, outcome="miss" if known is None else "hit")
        return known

    def _keep(self, key: Any, query: str, expansions: tuple[Expansion, ...], started: float) -> Expanded:
        if self.config.cache.size:
            self._cache[key] = expansions
        return self._answer(query, expansions, started, cached=False)

    def _decoding(self, options: ExpandOne | ExpandMany | SearchRequest, number: int) -> Decoding:
        settings = self.recipe.settings
        tokens = options.max_tokens or settings.max_tokens
        if number == 0:
            return Decoding(tokens, stop=settings.prompt.stop)
        drawn = SampleConfig()
        return Decoding(tokens, drawn.temperature, drawn.top_k, drawn.top_p, settings.prompt.stop, seed=number)

    async def _write(self, query: str, decoding: Decoding, whole: bool) -> AsyncGenerator[str | Expansion]:
        """New text as it is made, then the expansion."""
        raw, reason = "", "length"
        ids: list[int] = []
        prompt = self.recipe.prompt(query)
        async with aclosing(self.pieces(prompt, decoding, whole)) as pieces:
            async for piece in pieces:
                raw, reason = raw + piece.text, piece.finish_reason or reason
                ids += piece.token_ids
                if piece.text:
                    yield piece.text
        answer = self.recipe.reasoning.answer(prompt, raw, ids)
        yield self.recipe.expansion(query, answer, reason, len(ids), 0)

    async def _generate(self, query: str, decoding: Decoding) -> Expansion:
        async with aclosing(self._write(query, decoding, whole=True)) as written:
            expansions = [new async for new in written if isinstance(new, Expansion)]
        return expansions[0]

    def _answer(self, query: str, expansions: tuple[Expansion, ...], started: float, cached: bool) -> Expanded:
        first, *others = expansions
        return Expanded.model_validate(
            {
                "query": query,
                "expansion": first.text,
                "composed": first.composed,
                "num_tokens": first.num_tokens,
                "finish_reason": first.finish_reason,
                "alternatives": [
                    Alternative.model_validate(
                        {
                            "expansion": other.text,
                            "composed": other.composed,
                            "num_tokens": other.num_tokens,
                            "finish_reason": other.finish_reason,
                        }
                    )
                    for other in others
                ],
                "cached": cached,
                "model": self.model,
                "milliseconds": round((time.perf_counter() - started) * 1000, 3),
            }
        )


def _model_id(model: str) -> str:
    """`runs/x/align_rsft_dpo-0123/model` -> `align_rsft_dpo-0123`; a hub id stays as it is."""
    if model.startswith(PACKAGE):
        return model.removeprefix(PACKAGE)
    parts = [part for part in model.rstrip("/").split("/") if part]
    if parts[-1] == "model" and len(parts) > 1:
        return parts[-2]
    return parts[-1] if is_path(model) else model
