"""DPR's files of questions: csv of question and answers, or json with positive contexts."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson  # type: ignore[import-untyped]

from aqe.corpus.rows import Flaw, Part, RawRow
from aqe.errors import DataError


@dataclass(frozen=True)
class Questions:
    """The questions of one of DPR's files as rows of qid, text, answers and, of json, positives.

    They have no ids: `qid` is `name`, which is the file's, with the directories above it where others have the same,
    and the question's number in it, from 0.
    """

    file: Path
    name: str

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row)."""
        inside = self._json() if ".json" in self.file.suffixes else self._csv()
        for number, (place, row) in enumerate(inside):
            yield place, row if isinstance(row, Flaw) else {"qid": f"{self.name}-{number}", **row}

    def _csv(self) -> Iterator[tuple[str, RawRow | Flaw]]:
        yield from Part(self.file, "tsv", names=("text", "answers"), quoted=True).rows(("text", "answers"))

    def _json(self) -> Iterator[tuple[str, RawRow | Flaw]]:
        part = Part(self.file, "jsonl")
        with part.told("json"), part.open() as stream:
            number = 0
            try:
                # One after another: the files of training questions are gigabytes.
                for number, row in enumerate(ijson.items(stream, "item", use_float=True), 1):
                    yield f"{self.file}:{number}", _question(row)
            except ijson.JSONError as error:
                raise DataError(
                    f"{self.file} is no JSON array of questions as DPR writes it; something is wrong after question "
                    f"{number}: {error}"
                ) from None


def _question(row: Any) -> RawRow | Flaw:
    if not isinstance(row, dict):
        return Flaw("not a JSON object", row)
    contexts = [one for one in row.get("positive_ctxs") or () if isinstance(one, dict)]
    ids = [one.get("passage_id", one.get("psg_id")) for one in contexts]
    return {"text": row.get("question"), "answers": row.get("answers"), "positives": ids}
