"""Which column of a file is which of ours, and its values as text.

Files call the same thing by many names; a configuration's `columns` says which, else the usual names are tried in
order. Ids are text here whatever they are there, the same in every format: a JSON 7, an Arrow 7 or 7.0 is "7", and a
"007" stays what it is.
"""

import ast
import datetime
import decimal
import difflib
import json
import math
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

#: Ours -> what it is usually called, ours first; of several that are there the first counts.
PASSAGES: Mapping[str, tuple[str, ...]] = {
    "docid": ("docid", "_id", "id", "doc_id", "docno", "pid", "passage_id"),
    "title": ("title",),
    "text": ("text", "contents", "content", "body", "passage"),
}
QUERIES: Mapping[str, tuple[str, ...]] = {
    "qid": ("qid", "_id", "id", "query_id", "question_id"),
    "text": ("text", "query", "question"),
    "answers": ("answers", "answer"),
    "positives": ("positives",),
}
QRELS: Mapping[str, tuple[str, ...]] = {
    "qid": ("qid", "query-id", "query_id", "topic"),
    "docid": ("docid", "corpus-id", "corpus_id", "doc_id", "docno", "pid"),
    "relevance": ("relevance", "score", "grade", "label"),
}


class Names:
    """Where our columns lie in rows of one source."""

    def __init__(self, usual: Mapping[str, tuple[str, ...]], given: Mapping[str, str] | None = None) -> None:
        self._of = dict(usual) | {ours: (name,) for ours, name in (given or {}).items()}

    def __contains__(self, name: object) -> bool:
        """Whether a column of the file may be one of ours. Of `answers.text` the column is `answers`."""
        return any(name in (one, one.partition(".")[0]) for names in self._of.values() for one in names)

    def find(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Ours -> value, for those that the row has."""
        found = {}
        for ours, names in self._of.items():
            for name in names:
                if name in row:
                    found[ours] = row[name]
                    break
                if "." in name and (value := _inside(row, name)) is not None:
                    found[ours] = value
                    break
        return found

    def near(self, ours: str, there: Iterable[str]) -> str | None:
        """The column that is there and could be meant by one of ours."""
        names = [name for name in there if name not in self]
        return next(iter(difflib.get_close_matches(ours, names, n=1, cutoff=0.75)), None)


def _inside(row: Mapping[str, Any], path: str) -> Any:
    """`answers.text` of {"answers": {"text": ...}}; None where there is no such thing."""
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def as_text(value: Any) -> str | None:
    """A value of JSON or Arrow as text; None for nothing (null, not a number). TypeError for what holds other values.

    Whole floats are written as whole numbers: a column of ids with a gap is floats in many tools.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | decimal.Decimal):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, int | uuid.UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no text")


def as_texts(value: Any) -> list[str]:
    """A list of values, or a single one, as texts; nothing is no text, nor are blanks alone. TypeError as `as_text`.

    A text that is a list in JSON or Python, as a CSV file holds one, is that list.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _list(value)
    values = value if isinstance(value, list | tuple) else [value]
    return [text for one in values if (text := as_text(one)) is not None and text.strip()]


def _list(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | tuple):
            return found
    return text
