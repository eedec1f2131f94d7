"""What all configuration models share: frozen, and unknown keys are refused, with the nearest valid one."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Frozen pydantic model that refuses unknown keys. Importable without ray, torch, vllm or java."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def nearest(word: object, options: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where none of the options is near."""
    close = difflib.get_close_matches(str(word), list(options), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error as one line a problem: the key's path, what is wrong, the value, and what may be meant."""
    lines = []
    for problem in error.errors(include_url=False):
        loc = problem["loc"]
        key = ".".join(map(str, _keys(loc, model))) or "(top level)"
        if problem["type"] == "extra_forbidden":
            meant = nearest(loc[-1], _fields(loc[:-1], model)) or " Look for a typing error;"
            lines.append(f"{key}: there is no such key.{meant} docs/configuration.md lists all keys.")
        else:
            meant = nearest(problem.get("ctx", {}).get("tag", problem.get("input")), _choices(loc, model))
            said = problem["msg"].removeprefix("Value error, ")
            given = problem.get("input")
            # Nobody wants to read a whole section of his own file.
            it_is = "" if isinstance(given, Mapping | BaseModel) else f" (it is {given!r:.80})"
            lines.append(f"{key}: {said}{it_is}.{meant}")
    # A key may hold a line's end.
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines))


def models(kind: Any) -> list[type[BaseModel]]:
    """The configuration models that an annotation names, each once."""
    if get_origin(kind) in (Union, UnionType, Annotated, tuple, list, dict):
        return list(dict.fromkeys(model for part in get_args(kind) for model in models(part)))
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _walk(loc: Sequence[int | str], model: type[BaseModel]) -> tuple[list[int | str], list[type[BaseModel]], Any]:
    """(the keys of a pydantic location, the models that it leads into, the annotation of its last key).

    A location names what a union was decided by, too, which is no key of the user's.
    """
    there: list[type[BaseModel]] = [model]
    keys: list[int | str] = []
    annotation: Any = None
    for part in loc:
        fields = [of.model_fields[part] for of in there if isinstance(part, str) and part in of.model_fields]
        if fields:
            keys.append(part)
            annotation = fields[0].annotation
            there = [one for field in fields for one in models(field.annotation)]
        elif isinstance(part, int):
            keys.append(part)
        elif tagged := [
            of for of in there if part in _literals(getattr(of.model_fields.get("format"), "annotation", None))
        ]:
            there = tagged
        elif part == loc[-1] and not any(mark in part for mark in "[("):
            keys.append(part)
    return keys, there, annotation


def _keys(loc: Sequence[int | str], model: type[BaseModel]) -> list[int | str]:
    return _walk(loc, model)[0]


def _fields(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    return [field.alias or name for of in _walk(loc, model)[1] for name, field in of.model_fields.items()]


def _choices(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """The words that a key's value may be: its own, and the formats of what it may hold."""
    _, there, annotation = _walk(loc, model)
    formats = [word for of in there for word in _literals(getattr(of.model_fields.get("format"), "annotation", None))]
    return [*_literals(annotation), *formats]


def _literals(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if isinstance(word, str)]
    return [word for part in get_args(kind) for word in _literals(part)]
