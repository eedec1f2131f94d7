"""What becomes of a row that was read: one of ours, or a flaw that says why it is none."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from aqe.corpus.columns import Names, as_text, as_texts
from aqe.corpus.formats import Source
from aqe.corpus.rows import Flaw, RawRow
from aqe.errors import DataError

#: Bytes of the longest term that Lucene indexes, and a docid is one.
LONGEST_DOCID = 32_766
#: Characters of a row that a dead letter keeps.
MOST_OF_A_ROW = 2_000
#: Rows that are looked at to tell whether a source has the columns that it must have.
LOOKED_AT = 100

#: What records.QRELS holds, and no grade of relevance comes near.
LARGEST_GRADE = 2**31 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape half a character; no UTF-8 can hold it
_HALF = "half a surrogate pair, which is not Unicode"
#: What Java trims off a text: Anserini leaves out a passage that has nothing else.
_JAVA_BLANK = "".join(map(chr, range(0x21)))


def passage(row: RawRow, names: Names) -> RawRow | Flaw:
    """A row of records.CORPUS. A passage is good with a title or a text; a title that is no text counts as none."""
    found = names.find(row)
    docid = _id(found.get("docid"), "docid")
    if isinstance(docid, Flaw):
        return Flaw(docid.reason, row)
    if len(docid.encode(errors="replace")) > LONGEST_DOCID:
        return Flaw(f"docid of more than {LONGEST_DOCID:,} bytes", row)
    try:
        text = as_text(found.get("text")) or ""
    except (TypeError, UnicodeDecodeError):
        return Flaw("text that is no text", row)
    try:
        title = as_text(found.get("title")) or ""
    except (TypeError, UnicodeDecodeError):
        title = ""
    if not title.strip(_JAVA_BLANK) and not text.strip(_JAVA_BLANK):
        return Flaw("neither title nor text", row)
    if any(map(_SURROGATE.search, (docid, title, text))):
        return Flaw(_HALF, row)
    return {"docid": docid, "title": title, "text": text}


def query(row: RawRow, names: Names) -> RawRow | Flaw:
    """qid, text, answers, positives of a query."""
    found = names.find(row)
    qid = _id(found.get("qid"), "qid")
    if isinstance(qid, Flaw):
        return Flaw(qid.reason, row)
    try:
        text = as_text(found.get("text")) or ""
        lists = {name: as_texts(found.get(name)) for name in ("answers", "positives")}
    except (TypeError, UnicodeDecodeError) as error:
        return Flaw(f"a value that is no text: {error}", row)
    if not text.strip():
        return Flaw("no text", row)
    if any(map(_SURROGATE.search, (qid, text, *lists["answers"], *lists["positives"]))):
        return Flaw(_HALF, row)
    return {"qid": qid, "text": text, **lists}


def judgement(row: RawRow, names: Names) -> RawRow | Flaw:
    """qid, docid and relevance, a whole number."""
    found = names.find(row)
    ids = {name: _id(found.get(name), name) for name in ("qid", "docid")}
    if bad := next((one for one in ids.values() if isinstance(one, Flaw)), None):
        return Flaw(bad.reason, row)
    if any(map(_SURROGATE.search, map(str, ids.values()))):
        return Flaw(_HALF, row)
    try:
        relevance = float(as_text(found.get("relevance")) or "")
        if relevance != int(relevance) or abs(relevance) > LARGEST_GRADE:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        return Flaw("a relevance that is no whole number", row)
    return {**ids, "relevance": int(relevance)}


def _id(value: Any, name: str) -> str | Flaw:
    try:
        text = as_text(value)
    except (TypeError, UnicodeDecodeError):
        return Flaw(f"{name} that is no text", value)
    return text if text and text.strip(_JAVA_BLANK) else Flaw(f"no {name}", value)


def letter(stage: str, place: str, flaw: Flaw) -> dict[str, str]:
    """A row of records.DEAD_LETTERS."""
    row = flaw.row if isinstance(flaw.row, str) else json.dumps(flaw.row, default=str, ensure_ascii=False)
    made = {"stage": stage, "place": place, "reason": flaw.reason, "row": row[:MOST_OF_A_ROW]}
    return {name: value.encode(errors="replace").decode() for name, value in made.items()}


def counted(reasons: Mapping[str, int]) -> str:
    """`3 duplicate docid, 2 not UTF-8`, the commonest first."""
    common = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {reason}" for reason, number in common)


#: What a row must have: any of each.
NEEDED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "corpus": (("docid",), ("text", "title")),
    "queries": (("qid",), ("text",)),
    "qrels": (("qid",), ("docid",), ("relevance",)),
}


def probe(source: Source, kind: str) -> set[str]:
    """Which of our columns the first rows have. DataError where one that is needed is in none of them.

    Reads LOOKED_AT rows, so it is soon done before anything else is.
    """
    there: dict[str, None] = {}
    ours: set[str] = set()
    looked, first, flaws = 0, "", Counter[str]()
    for place, row in _rows(source):
        looked += 1
        first = first or place
        if isinstance(row, dict):
            there |= dict.fromkeys(map(str, row))
            ours |= source.names.find(row).keys()
        else:
            flaws[row.reason] += 1
        if looked == LOOKED_AT:
            break
    if looked and not there:
        raise DataError(f"{first}: none of its first {looked} rows can be read: {counted(flaws)}. Is the format right?")
    for any_of in NEEDED[kind]:
        if looked and not ours & set(any_of):
            name = " or ".join(any_of)
            near = next((close for one in any_of if (close := source.names.near(one, there))), None)
            hint = f"Did you mean {near!r}? Say so: columns: {{{any_of[0]}: {near}}}." if near else (
                f"Say which column it is: columns: {{{any_of[0]}: ...}}."
            )  # fmt: skip
            raise DataError(f"{first}: no column is {name}. There are {', '.join(there) or 'none'}. {hint}")
    return ours


def first_texts(source: Source) -> list[str]:
    """Titles and texts of the first passages."""
    rows = (passage(row, source.names) for _, row in islice(_rows(source), LOOKED_AT) if isinstance(row, dict))
    return [f"{row['title']} {row['text']}" for row in rows if isinstance(row, dict)]


def unjudged(source: Source) -> str:
    """What to do about queries that nobody judged: the column that may be meant, or where judgements are named."""
    there = dict.fromkeys(name for _, row in islice(_rows(source), LOOKED_AT) if isinstance(row, dict) for name in row)
    for ours in ("positives", "answers"):
        if near := source.names.near(ours, there):
            return f"It has {', '.join(there)}. Did you mean {near!r}? Say so: columns: {{{ours}: {near}}}."
    return (
        f"It has {', '.join(there)}. It needs a column `positives` (docids) or `answers` (texts), or the source's key "
        "`qrels`, such as {format: trec, path: qrels.txt}."
    )


def _rows(source: Source) -> Iterator[tuple[str, RawRow | Flaw]]:
    for part in source.parts:
        yield from part.rows(_Everything())


class _Everything:
    """Any column: those that are not ours are what a message names."""

    def __contains__(self, name: object) -> bool:
        return True
