"""A model that expands queries: for people, evaluation and search pipelines."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from aqe.config.sample import EngineConfig, PromptConfig
from aqe.errors import InputError
from aqe.expand.recipe import Expansion, Recipe, load_recipe
from aqe.expand.settings import ExpanderSettings
from aqe.sample.engine import Engine, Request, Sampling
from aqe.sample.load import choose_engine, make_engine


class Expander:
    """Expands queries greedily: one expansion each, the same every time."""

    def __init__(self, engine: Engine, recipe: Recipe) -> None:
        self.engine = engine
        self.recipe = recipe

    @property
    def settings(self) -> ExpanderSettings:
        return self.recipe.settings

    @property
    def path(self) -> Path:
        """The model's directory."""
        return self.recipe.path

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        prompt: str | PromptConfig | None = None,
        query_weight: int | None = None,
        max_tokens: int | None = None,
        engine: Literal["auto", "vllm", "transformers"] | EngineConfig = "transformers",
    ) -> "Expander":
        """Load `model`: a directory, an artifact that holds `model/`, a hub id, or `package:NAME`.

        What is not given is taken from the model's `aqe.json`, else EAR's prompt, weight 1 and 100 tokens.
        Raises InputError when the model cannot be used, ConfigError for settings that cannot work.
        """
        import torch

        recipe = load_recipe(model, prompt=prompt, query_weight=query_weight, max_tokens=max_tokens)
        config = engine if isinstance(engine, EngineConfig) else EngineConfig(name=engine)
        use_gpu = torch.cuda.is_available()
        name = choose_engine(config, use_gpu, recipe.path)
        if name == "vllm":
            from aqe.sample.engine_vllm import vllm_env

            # Before the engine imports vllm; what the user has set stays.
            os.environ.update({key: value for key, value in vllm_env(config, use_gpu).items() if key not in os.environ})
        sampling = Sampling(recipe.settings.max_tokens, stop=recipe.settings.prompt.stop)
        return cls(make_engine(name, str(recipe.path), config, sampling), recipe)

    def expand(self, query: str) -> Expansion:
        """Expand one query. Raises InputError when it is no text, empty, or too long for the model."""
        if not isinstance(query, str):
            raise InputError(f"expand takes one query, a text, not {type(query).__name__}; expand_many takes several.")
        return self.expand_many([query])[0]

    def expand_many(self, queries: Sequence[str]) -> list[Expansion]:
        """Expand queries together, which is faster than one by one; in their order. Raises as `expand` does."""
        if isinstance(queries, str):
            raise InputError("expand_many takes a list of queries, not one text; expand takes one.")
        for i, query in enumerate(queries):
            if not isinstance(query, str):
                raise InputError(
                    f"query {i + 1} of {len(queries)} is no text but {type(query).__name__}: {query!r:.80}"
                )
            if not query.strip():
                at = f" (number {i + 1} of {len(queries)})" if len(queries) > 1 else ""
                raise InputError(f"the query{at} is empty: there is nothing to expand. Give at least one word.")
        started = time.perf_counter()
        answers = self.engine.generate([Request(self.recipe.prompt(query), 1, 0) for query in queries])
        milliseconds = (time.perf_counter() - started) * 1000 / max(1, len(queries))
        return [self._expansion(*pair, milliseconds) for pair in zip(queries, answers, strict=True)]

    def _expansion(self, query: str, answer: Any, milliseconds: float) -> Expansion:
        if isinstance(answer, str):
            raise InputError(
                f"cannot expand the query {query[:80]!r}: {answer}. Shorten it, or allow fewer max_tokens."
            )
        generated = answer[0]
        return self.recipe.expansion(
            query, generated.answer, generated.finish_reason, generated.num_tokens, milliseconds
        )
