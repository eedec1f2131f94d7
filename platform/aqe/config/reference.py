"""The reference of all configuration keys, from the models themselves: `python -m aqe.config.reference`."""

import math
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

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


def _models(kind: Any) -> list[type[BaseModel]]:
    """The configuration models that an annotation names."""
    if get_origin(kind) in (Union, UnionType, Annotated, tuple, list):
        return [model for part in get_args(kind) for model in _models(part)]
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _name(kind: Any) -> str:
    text = str(kind) if get_origin(kind) else getattr(kind, "__name__", str(kind))
    for noise in (
        "typing.",
        "aqe.config.sample.",
        "aqe.config.align.",
        "aqe.config.data.",
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


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Table rows of a model's keys, nested ones below their parent."""
    for key, field in model.model_fields.items():
        nested = _models(field.annotation)
        if field.is_required():
            shown = "required"
        else:
            default = field.get_default(call_default_factory=True)
            shown = "" if isinstance(default, BaseModel) else f"`{as_yaml(default)}`"
        about = " ".join((field.description or "").split())
        kind = " or ".join(m.__name__ for m in nested) if nested else _name(field.annotation)
        yield f"| `{prefix}{key}` | {kind} | {shown} | {about} |"
        for inner in nested:
            if inner.__name__ != "PromptConfig" or key == "prompt":
                yield from rows(inner, f"{prefix}{key}.")


def page() -> str:
    """The whole page."""
    pipeline, endpoint = ("\n".join(dict.fromkeys(rows(model))) + "\n" for model in (PipelineConfig, ServeConfig))
    return HEAD + TABLE + pipeline + ENDPOINT + TABLE + endpoint


if __name__ == "__main__":
    print(page(), end="")
