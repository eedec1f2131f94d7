"""TREC's files: topics in the usual forms, and judgements."""

import html
import io
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from aqe.corpus.rows import Flaw, Part, RawRow
from aqe.errors import DataError

#: Begins a topic, in both of TREC's markups.
_TOPIC = re.compile(r"<(top|topic)\b([^>]*)>(.*?)(?=</\1\s*>|<\1\b|\Z)", re.DOTALL | re.IGNORECASE)
#: A tag and what follows it up to the next one: early topics close none.
_FIELD = re.compile(r"<(\w+)[^>]*>(.*?)(?=<|\Z)", re.DOTALL)
_NUMBER = re.compile(r"""number\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
#: What TREC's own words before a field's text are.
_LEADS = re.compile(r"^\s*(Number|Topic|Description|Narrative)\s*:", re.IGNORECASE)
_CALLED = {"title": ("title", "query"), "description": ("desc", "description"), "narrative": ("narr", "narrative")}
_LINE = re.compile(r"^\s*([^\s:]+)\s*[:\t]\s*(.*?)\s*$")


@dataclass(frozen=True)
class Topics:
    """The topics of a file as rows of qid and text."""

    file: Path
    field: str = "title"

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row). DataError where there is no topic at all."""
        part = Part(self.file, "tsv")
        try:
            with part.told("trec"), part.open() as stream:
                text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.file} is not UTF-8 ({error}). Write it as UTF-8.") from None
        found = False
        for line, row in self._tagged(text) if _TOPIC.search(text) else self._lines(text):
            found = True
            yield f"{self.file}:{line}", row
        if not found:
            raise DataError(f"{self.file} holds no topic: neither <top> or <topic> tags nor lines of `number:text`.")

    def _tagged(self, text: str) -> Iterator[tuple[int, RawRow | Flaw]]:
        at, line = 0, 1
        for topic in _TOPIC.finditer(text):
            line, at = line + text.count("\n", at, topic.start()), topic.start()
            fields = {name.lower(): _LEADS.sub("", said) for name, said in _FIELD.findall(topic[3])}
            number = _NUMBER.search(topic[2])
            qid = number[1] if number else fields.get("num", "").strip()
            said = next((fields[name] for name in _CALLED[self.field] if name in fields), None)
            if said is None or not qid:
                yield line, Flaw("no number" if said is not None else f"no {self.field}", topic[0])
            else:
                yield line, {"qid": qid, "text": " ".join(html.unescape(said).split())}

    def _lines(self, text: str) -> Iterator[tuple[int, RawRow | Flaw]]:
        for number, line in enumerate(map(str.strip, io.StringIO(text, newline=None)), 1):
            if line:
                parted = _LINE.match(line)
                yield number, {"qid": parted[1], "text": parted[2]} if parted else Flaw("not `number:text`", line)


@dataclass(frozen=True)
class Judgements:
    """Lines of `qid 0 docid relevance` as rows."""

    file: Path

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row)."""
        for place, line in Part(self.file, "tsv").lines():
            fields = line.split() if isinstance(line, str) else []
            if isinstance(line, Flaw):
                yield place, line
            elif len(fields) == 4:
                yield place, {"qid": fields[0], "docid": fields[2], "relevance": fields[3]}
            else:
                yield place, Flaw("not `qid 0 docid relevance`", line)
