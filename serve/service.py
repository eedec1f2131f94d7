"""Queries become expansions: rules, cache, engine. No HTTP in here."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aqe.config.data import PACKAGE, is_path
from aqe.config.sample import SampleConfig
from aqe.config.serve import ServeConfig
from aqe.errors import InputError
from aqe.expand.recipe import Expansion, Recipe, load_recipe
from aqe.expand.settings import SETTINGS
from serve.cache import Cache
from serve.call import Call
from serve.engine import Decoding, Job, ServingEngine, open_engine
from serve.generator import Generator
from serve.schemas import Alternative, Expanded, ExpandedMany, ExpandMany, ExpandOptions, Failed, Model, Query
from serve.together import together

_QUERY: TypeAdapter[str] = TypeAdapter(Query)


@dataclass
class _Plan:
    """A query, and what its answer takes: expansions that are known already, or jobs for the engine."""

    query: str
    known: tuple[Expansion, ...] = ()
    cached: bool = False
    key: Any = None
    jobs: list[tuple[str, Job]] = field(default_factory=list)
    """Each with the query that it is for."""


class ExpandService:
    """One model in one replica."""

    def __init__(self, config: ServeConfig, recipe: Recipe, engine: ServingEngine) -> None:
        self.config = config
        self.recipe = recipe
        self.engine = engine
        self.generator = Generator(engine, recipe.tokenizer, config.limits)
        self.model = config.model_id or _model_id(config.model)
        self._cache = Cache(config.cache)
        self._pattern = re.compile(config.skip.pattern) if config.skip.pattern else None

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
        """Raises EngineStopped when the engine is dead, or has had work for too long without making a step."""
        await self.generator.check()

    async def expand(self, query: str, options: ExpandOptions, call: Call) -> Expanded:
        """A query's expansions. Raises InputError when the model cannot take it."""
        plan = self._plan(query, options, call)
        return self._finish(plan, await self._made(plan.jobs, call), call)

    async def expand_many(self, options: ExpandMany, call: Call) -> ExpandedMany:
        """Several queries at once, in their order. One that cannot be expanded gets an error, the others do not."""
        plans: list[_Plan | InputError] = []
        for query in options.queries:
            plans.append(self._checked(query, options, call))
            # Tokens of long queries take a while to count.
            await asyncio.sleep(0)
        parts = [part for plan in plans if isinstance(plan, _Plan) for part in plan.jobs]
        made = iter(await self._made(parts, call))
        results: list[Expanded | Failed] = []
        for query, plan in zip(options.queries, plans, strict=True):
            if isinstance(plan, _Plan):
                results.append(self._finish(plan, [next(made) for _ in plan.jobs], call))
                # So does writing thousands of expansions down.
                await asyncio.sleep(0)
            else:
                results.append(Failed.of(query, plan))
        return ExpandedMany(results=results, model=self.model, milliseconds=call.milliseconds)

    async def stream(self, query: str, options: ExpandOptions, call: Call) -> AsyncGenerator[str | Expanded]:
        """New text as it is made, then the answer."""
        plan = self._plan(query, options, call, whole=False)
        if len(plan.jobs) != 1:
            answer = self._finish(plan, await self._made(plan.jobs, call), call)
            if answer.expansion:
                yield answer.expansion
            yield answer
            return
        await self.generator.admit(call.caller, [job for _, job in plan.jobs])
        async with aclosing(self._write(*plan.jobs[0])) as written:
            async for new in written:
                yield self._finish(plan, [new], call) if isinstance(new, Expansion) else new

    def skips(self, query: str, options: ExpandOptions) -> bool:
        """The request or a rule says that this query needs no expansion."""
        rule = self.config.skip
        return (
            options.skip
            or (rule.max_words is not None and len(query.split()) > rule.max_words)
            or (self._pattern is not None and self._pattern.search(query) is not None)
        )

    def _checked(self, query: str, options: ExpandOptions, call: Call) -> "_Plan | InputError":
        """As `_plan`, of a text of a batch, which need not be a query: what is wrong with it is returned."""
        try:
            return self._plan(_QUERY.validate_python(query), options, call)
        except ValidationError as error:
            return InputError(error.errors()[0]["msg"])
        except InputError as error:
            return error

    def _plan(self, query: str, options: ExpandOptions, call: Call, whole: bool = True) -> _Plan:
        """What a query takes. Nothing has begun; InputError when it cannot be done."""
        if self.skips(query, options):
            return _Plan(query, (Expansion(query, "", query, "skip", 0, 0),))
        key = call.caller, query, options.max_tokens, options.num_expansions
        if known := self._cache.get(key):
            return _Plan(query, known, cached=True)
        decodings = [self._decoding(options, i) for i in range(options.num_expansions)]
        jobs = self.generator.jobs(call.caller, self.recipe.prompt(query), decodings, whole)
        return _Plan(query, key=key, jobs=[(query, job) for job in jobs])

    def _decoding(self, options: ExpandOptions, number: int) -> Decoding:
        settings = self.recipe.settings
        tokens = options.max_tokens or settings.max_tokens
        if number == 0:
            return Decoding(tokens, stop=settings.prompt.stop)
        drawn = SampleConfig()
        return Decoding(tokens, drawn.temperature, drawn.top_k, drawn.top_p, settings.prompt.stop, seed=number)

    async def _made(self, parts: list[tuple[str, Job]], call: Call) -> list[Expansion]:
        """All expansions of one request."""
        await self.generator.admit(call.caller, [job for _, job in parts])
        # The same query may come several times.
        distinct: dict[tuple[str, Job], int] = {}
        places: list[int] = []
        for part in parts:
            places.append(distinct.setdefault(part, len(distinct)))
            if len(places) % 1000 == 0:
                await asyncio.sleep(0)
        made = await together(self._generate, list(distinct), self.engine.places)
        return [made[place] for place in places]

    async def _write(self, query: str, job: Job) -> AsyncGenerator[str | Expansion]:
        """New text as it is made, then the expansion."""
        raw, reason = "", "length"
        ids: list[int] = []
        async with aclosing(self.generator.pieces(job)) as pieces:
            async for piece in pieces:
                raw, reason = raw + piece.text, piece.finish_reason or reason
                ids += piece.token_ids
                if piece.text:
                    yield piece.text
        answer = self.recipe.reasoning.answer(job.prompt, raw, ids)
        yield self.recipe.expansion(query, answer, reason, len(ids), 0)

    async def _generate(self, part: tuple[str, Job]) -> Expansion:
        async with aclosing(self._write(*part)) as written:
            expansions = [new async for new in written if isinstance(new, Expansion)]
        return expansions[0]

    def _finish(self, plan: _Plan, made: list[Expansion], call: Call) -> Expanded:
        """The answer to a query, of what was known or is made; what is made is kept."""
        if made:
            self._cache.keep(plan.key, tuple(made))
        first, *others = plan.known or made
        return Expanded.model_validate(
            {
                "query": plan.query,
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
                "cached": plan.cached,
                "model": self.model,
                "milliseconds": call.milliseconds,
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
