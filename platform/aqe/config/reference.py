"""The reference of all configuration keys, from the models themselves: `python -m aqe.config.reference`."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from aqe.config.base import models
from aqe.config.pipeline import PipelineConfig
from aqe.config.serve import ServeConfig

HEAD = """# Configuration

This page lists every key of a configuration: what it can be, its default, and what it does. You need it when a default
does not fit. A file holds only what differs from the defaults, and `--set key.path=value` overrides one key of it.

`make docs` writes this page from the code.

## The run

"""
ENDPOINT = """
## The endpoint

These keys are the arguments of the application `serve.app:build`: `args` in `serve/config.yaml`. Everything around them
in that file (replicas, autoscaling, addresses) is
[Ray Serve's](https://docs.ray.io/en/latest/serve/production-guide/config.html).

"""
HEADS = {
    False: "| key | value | default | what it does |\n|---|---|---|---|\n",
    True: "| key | formats | value | default | what it does |\n|---|---|---|---|---|\n",
}
#: What is said before the keys of a choice of models; a single model says it itself.
CHOICES = {
    "corpus": "The passages that are searched. Which keys there are depends on `format`.",
    "queries.train": "A source of queries. `queries.dev`, `queries.test` and `queries.all` take the same keys.",
    "queries.train.qrels": "Judgements in files of their own.",
}
#: A model with at most so many keys, that is always there, has them in the table of its parent.
SMALL = 3
PLAIN: Mapping[Any, str] = {
    bool: "`true`, `false`",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "`null`",
    Any: "anything",
    object: "anything",
}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def as_yaml(value: Any) -> str:
    """A default as a line of YAML, to be written in a table's cell."""
    line = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=math.inf)
    # PyYAML ends a document that is a word or a number.
    return line.removesuffix("...\n").strip().replace("|", "\\|")


def value_of(kind: Any, bounds: Sequence[Any] = ()) -> str:
    """What a key can be, in words; configuration models are left out, because they are shown as keys."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return value_of(parts[0], parts[1:])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(filter(None, (value_of(part, bounds) for part in parts))))
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in parts)
    if origin is tuple:
        inner = re.sub(r"^(integer|number|path)\b", r"\1s", value_of(parts[0]))
        return f"list of {inner}" if inner else ""
    if origin is dict:
        return "keys and values"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return ""
    limits = [f"{word} {getattr(b, name)}" for b in bounds for name, word in BOUNDS.items() if hasattr(b, name)]
    return " ".join([PLAIN[kind], " and ".join(limits) if kind in (int, float) else ""]).strip()


@dataclass
class _Reference:
    """Writes tables. Keys that were shown once are referred to from elsewhere."""

    shown_at: dict[tuple[type[BaseModel], ...], str] = field(default_factory=dict)

    def table(self, choice: Sequence[type[BaseModel]], prefix: str = "", level: str = "##") -> str:
        """The table of a model, or of several that a key chooses from, then a section for each model inside."""
        inside: dict[str, tuple[type[BaseModel], ...]] = {}
        rows = "".join(f"| {' | '.join(cells)} |\n" for cells in self._rows(choice, prefix, inside))
        parts = [HEADS[len(choice) > 1], rows]
        for key, nested in inside.items():
            intro = CHOICES[key] if len(nested) > 1 else " ".join((nested[0].__doc__ or "").split())
            parts.append(f"\n{level} `{key}`\n\n{intro}\n\n{self.table(nested, f'{key}.', '###')}")
        return "".join(parts)

    def _rows(
        self, choice: Sequence[type[BaseModel]], prefix: str, inside: dict[str, tuple[type[BaseModel], ...]]
    ) -> Iterator[list[str]]:
        names = dict.fromkeys(name for model in choice for name in model.model_fields)
        for name in sorted(names, key=lambda name: name != "format"):
            own = {model: model.model_fields[name] for model in choice if name in model.model_fields}
            info = next(iter(own.values()))
            key = f"{prefix}{info.alias or name}"
            formats = [_formats(choice, own)] if len(choice) > 1 else []
            nested = tuple(models(info.annotation))
            if isinstance(info.default, BaseModel) and len(nested[0].model_fields) <= SMALL:
                for first, *rest in self._rows(nested, f"{key}.", inside):
                    yield [first, *formats, *rest]
                continue
            value = _said(own, lambda one: value_of(one.annotation, one.metadata), apart=name != "format")
            if nested:
                verb = "as" if nested in self.shown_at else "keys of"
                at = self.shown_at.setdefault(nested, key)
                if verb != "as":
                    inside[key] = nested
                keys = f"{verb} [`{at}`](#{at.replace('.', '')})"
                value = f"{keys} or {value}" if value else keys
            about = _said(own, lambda one: " ".join((one.description or "").split()))
            about = about.replace("docs/formats.md", "[formats](formats.md)")
            yield [f"`{key}`", *formats, value, _said(own, _default), about]


def _formats_of(model: type[BaseModel]) -> list[str]:
    return list(get_args(model.model_fields["format"].annotation))


def _formats(choice: Sequence[type[BaseModel]], having: Mapping[type[BaseModel], FieldInfo]) -> str:
    """Which formats have a key."""
    every = list(dict.fromkeys(name for model in choice for name in _formats_of(model)))
    own = [name for name in every if any(name in _formats_of(model) for model in having)]
    others = [name for name in every if name not in own]
    return ", ".join(own) if len(others) > 1 else f"all but {others[0]}" if others else "all"


def _said(own: Mapping[type[BaseModel], FieldInfo], say: Callable[[FieldInfo], str], apart: bool = True) -> str:
    """What is said of a key; where that depends on the format, with the formats (unless not `apart`)."""
    said: dict[str, list[str]] = {}
    for model, info in own.items():
        said.setdefault(say(info), []).extend(_formats_of(model) if "format" in model.model_fields else [])
    if len(said) == 1 or not apart:
        return ", ".join(said)
    return "<br>".join(f"{', '.join(dict.fromkeys(formats))}: {text}" for text, formats in said.items())


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    return "" if isinstance(default, BaseModel) else f"`{as_yaml(default)}`"


def page() -> str:
    """The whole page."""
    reference = _Reference()
    pipeline = reference.table((PipelineConfig,))
    return HEAD + pipeline + ENDPOINT + reference.table((ServeConfig,), level="###")


if __name__ == "__main__":
    print(page(), end="")
