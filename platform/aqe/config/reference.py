"""The reference of all configuration keys, from the models themselves: `python -m aqe.config.reference`."""

import math
from collections.abc import Iterator
from typing import Any, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from aqe.config.base import models
from aqe.config.pipeline import PipelineConfig
from aqe.config.serve import ServeConfig

HEAD = """# Configuration

Every key, its type, its default. A file holds what differs from the defaults; `--set key.path=value` overrides it.
This page is made by `make docs`.

"""
ENDPOINT = """
## The endpoint

Arguments of the application `serve.app:build`: `args` in `serve/config.yaml`. What is around them there (replicas,
autoscaling, addresses) is [Ray Serve's](https://docs.ray.io/en/latest/serve/production-guide/config.html).

"""
TABLE = """| key | type | default | |
|---|---|---|---|
"""


def _name(kind: Any) -> str:
    text = str(kind) if get_origin(kind) else getattr(kind, "__name__", str(kind))
    for noise in (
        "typing.",
        "aqe.config.sample.",
        "aqe.config.align.",
        "aqe.config.data.",
        "aqe.config.sources.",
        "aqe.config.splits.",
        "pathlib._local.",
        "pathlib.",
    ):
        text = text.replace(noise, "")
    return text.replace("|", "\\|").replace("NoneType", "null").replace("None", "null")


def as_yaml(value: Any) -> str:
    """A default as a line of YAML, to be written in a table's cell."""
    line = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=math.inf)
    # PyYAML ends a document that is a word or a number.
    return line.removesuffix("...\n").strip().replace("|", "\\|")


def rows(model: type[BaseModel], prefix: str = "", shown_at: dict[tuple[str, ...], str] | None = None) -> Iterator[str]:
    """Table rows of a model's keys, nested ones below their parent; the same choice of models only once."""
    shown_at = {} if shown_at is None else shown_at
    for name, field in model.model_fields.items():
        key = field.alias or name
        nested = models(field.annotation)
        choice = tuple(inner.__name__ for inner in nested)
        if field.is_required():
            shown = "required"
        else:
            default = field.get_default(call_default_factory=True)
            shown = "" if isinstance(default, BaseModel) else f"`{as_yaml(default)}`"
        about = " ".join((field.description or "").split())
        kind = " or ".join(choice) if nested else _name(field.annotation)
        if len(choice) > 1 and shown_at.setdefault(choice, f"{prefix}{key}") != f"{prefix}{key}":
            kind, nested = f"as `{shown_at[choice]}`", []
        yield f"| `{prefix}{key}` | {kind} | {shown} | {about} |"
        for inner in nested:
            if inner.__name__ != "PromptConfig" or f"{prefix}{key}" in ("prompt", "sample.prompt"):
                yield from rows(inner, f"{prefix}{key}.", shown_at)


def page() -> str:
    """The whole page."""
    pipeline, endpoint = ("\n".join(dict.fromkeys(rows(model))) + "\n" for model in (PipelineConfig, ServeConfig))
    return HEAD + TABLE + pipeline + ENDPOINT + TABLE + endpoint


if __name__ == "__main__":
    print(page(), end="")
