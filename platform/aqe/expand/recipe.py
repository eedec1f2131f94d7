"""How one model is asked, and what becomes of its answer: the same in Python, in the server and in evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aqe.base_model import model_directory
from aqe.compose import clean, compose
from aqe.config.data import ModelConfig, is_path
from aqe.config.sample import PromptConfig
from aqe.errors import ConfigError, InputError
from aqe.expand.settings import SETTINGS, ExpanderSettings
from aqe.prompts import load_tokenizer, render, resolve
from aqe.reasoning import Reasoning


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


@dataclass(frozen=True)
class Recipe:
    """A model's directory, the settings that it was aligned for, and its tokenizer."""

    path: Path
    settings: ExpanderSettings
    tokenizer: Any
    reasoning: Reasoning

    def prompt(self, query: str) -> str:
        """What the model continues for this query."""
        return render(self.settings.prompt, query, self.tokenizer)

    def expansion(self, query: str, answer: str, finish_reason: str, num_tokens: int, milliseconds: float) -> Expansion:
        """What the model answered as the expansion that is searched."""
        text = clean(answer)
        composed = compose(query, text, self.settings.query_weight, self.settings.distinct_words)
        return Expansion(query, text, composed, finish_reason, num_tokens, milliseconds)


def load_recipe(
    model: str | Path,
    *,
    prompt: str | PromptConfig | None = None,
    query_weight: int | None = None,
    max_tokens: int | None = None,
) -> Recipe:
    """`model`: a directory, an artifact that holds `model/`, a hub id, or `package:NAME`. Loads no weights.

    What is not given is taken from the model's `aqe.json`, else EAR's prompt, weight 1 and 100 tokens.
    Raises InputError when the model cannot be used, ConfigError for settings that cannot work.
    """
    path = _model_path(model)
    given = {"query_weight": query_weight, "max_tokens": max_tokens, "prompt": resolve(prompt) if prompt else None}
    settings = _settings(path, {key: value for key, value in given.items() if value is not None})
    tokenizer = load_tokenizer(path)
    recipe = Recipe(path, settings, tokenizer, Reasoning(tokenizer))
    recipe.prompt("a query")  # A chat prompt needs a template: fail before the weights load.
    return recipe


def _model_path(model: str | Path) -> Path:
    if isinstance(model, Path) or is_path(model):
        # Absolute, so that no path can be read as a hub id.
        path = Path(model).expanduser().absolute()
        inner = path / "model"
        model = inner if not (path / "config.json").exists() and (inner / "config.json").exists() else path
    return model_directory(ModelConfig(source=str(model)))


def _settings(path: Path, given: dict[str, Any]) -> ExpanderSettings:
    """The model's own settings, overridden by those given."""
    file = path / SETTINGS
    try:
        own = ExpanderSettings.model_validate_json(file.read_bytes()) if file.exists() else ExpanderSettings()
    except ValidationError as error:
        raise InputError(f"{file} is not what AQE writes next to a model: {error}. Export the model again.") from None
    try:
        return ExpanderSettings.model_validate({**dict(own), **given})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"Expander.load: {wrong}") from None
