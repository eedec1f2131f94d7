"""A model that expands queries: for people, the server and search pipelines."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from aqe.base_model import PACKAGE, model_directory
from aqe.config.data import ModelConfig
from aqe.config.sample import EngineConfig, PromptConfig
from aqe.errors import ConfigError, InputError
from aqe.expand.compose import compose
from aqe.expand.settings import SETTINGS, ExpanderSettings
from aqe.sample.clean import clean
from aqe.sample.engine import Engine, Request, Sampling, choose_engine, make_engine
from aqe.sample.prompts import render, resolve


@dataclass(frozen=True)
class Expansion:
    """One query's expansion, and what it took."""

    query: str
    text: str
    """What the model added, on one line; may be empty."""
    composed: str
    """The query to search with: query and expansion."""
    finish_reason: str
    """`stop`, or `length` when the expansion was cut at the token limit."""
    num_tokens: int
    milliseconds: float
    """Wall time of the call, divided by the number of queries in it."""

    def __str__(self) -> str:
        return self.text


class Expander:
    """Expands queries greedily: one expansion each, the same every time."""

    def __init__(self, engine: Engine, tokenizer: Any, settings: ExpanderSettings, path: Path) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.path = path

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
        from transformers import AutoTokenizer

        path = _model_path(model)
        given = {"query_weight": query_weight, "max_tokens": max_tokens, "prompt": resolve(prompt) if prompt else None}
        settings = _settings(path, {key: value for key, value in given.items() if value is not None})
        config = engine if isinstance(engine, EngineConfig) else EngineConfig(name=engine)
        use_gpu = torch.cuda.is_available()
        name = choose_engine(config, use_gpu)
        if name == "vllm":
            from aqe.sample.engine_vllm import vllm_env

            # Before the engine imports vllm; what the user has set stays.
            os.environ.update({key: value for key, value in vllm_env(config, use_gpu).items() if key not in os.environ})
        tokenizer = AutoTokenizer.from_pretrained(path)
        render(settings.prompt, "a query", tokenizer)  # A chat prompt needs a template: fail before the weights load.
        sampling = Sampling(settings.max_tokens, stop=settings.prompt.stop)
        return cls(make_engine(name, str(path), config, sampling), tokenizer, settings, path)

    def expand(self, query: str) -> Expansion:
        """Expand one query. Raises InputError when it is empty, or too long for the model."""
        return self.expand_many([query])[0]

    def expand_many(self, queries: Sequence[str]) -> list[Expansion]:
        """Expand queries together, which is faster than one by one; in their order. Raises as `expand` does."""
        for i, query in enumerate(queries):
            if not query.strip():
                at = f" (number {i + 1} of {len(queries)})" if len(queries) > 1 else ""
                raise InputError(f"the query{at} is empty: there is nothing to expand. Give at least one word.")
        started = time.perf_counter()
        requests = [Request(render(self.settings.prompt, query, self.tokenizer), 1, 0) for query in queries]
        answers = self.engine.generate(requests)
        milliseconds = (time.perf_counter() - started) * 1000 / max(1, len(queries))
        return [self._expansion(*pair, milliseconds) for pair in zip(queries, answers, strict=True)]

    def _expansion(self, query: str, answer: Any, milliseconds: float) -> Expansion:
        if isinstance(answer, str):
            raise InputError(
                f"cannot expand the query {query[:80]!r}: {answer}. Shorten it, or allow fewer max_tokens."
            )
        made = answer[0]
        text = clean(made.raw)
        composed = compose(query, text, self.settings.query_weight, self.settings.distinct_words)
        return Expansion(query, text, composed, made.finish_reason, made.num_tokens, milliseconds)


def _model_path(model: str | Path) -> Path:
    if isinstance(model, Path) or not model.startswith(PACKAGE):
        path = Path(model).expanduser()
        if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
            model = path / "model"
        elif isinstance(model, Path) or path.is_dir():
            # Absolute, so that no path can be read as a hub id.
            model = path.absolute()
    return model_directory(ModelConfig(source=str(model)))


def _settings(path: Path, given: dict[str, Any]) -> ExpanderSettings:
    """The model's own settings, overridden by those given."""
    file = path / SETTINGS
    try:
        own = ExpanderSettings.model_validate_json(file.read_bytes()) if file.exists() else ExpanderSettings()
    except ValidationError as error:
        raise InputError(f"{file} is not what AQE writes beside a model: {error}. Export the model again.") from None
    try:
        return ExpanderSettings.model_validate({**dict(own), **given})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"Expander.load: {wrong}") from None
