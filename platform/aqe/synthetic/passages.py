"""Which passages are asked for a query, and what the model is shown of each."""

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import regex  # type: ignore[import-untyped]

from aqe.artifact import GROUP_ROWS, parquet_files, write_parquet
from aqe.config.sources import SPLITS
from aqe.errors import InputError
from aqe.records import table

#: Shorter passages, with their titles, say too little to ask about; of longer ones the beginning is shown, which
#: leaves room in a small model's context.
FEWEST_WORDS, MOST_WORDS = 10, 150
#: `text` is what the model is shown; `key` says whose query it is to be (train, dev, test, or all).
ASKED = pa.schema([("qid", pa.string()), ("text", pa.string()), ("docid", pa.string()), ("key", pa.string())])

#: Scripts without blanks between words: a character counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Words of a text, in any script."""
    found: list[str] = _WORD.findall(text)
    return found


def shown(title: str, text: str) -> str | None:
    """A passage on one line, its title before it; None when it is too short to ask about."""
    line = ". ".join(part for part in (" ".join(title.split()), " ".join(text.split())) if part)
    ends = [word.end() for word in _WORD.finditer(line)][: MOST_WORDS + 1]
    if len(ends) < FEWEST_WORDS:
        return None
    return line[: ends[MOST_WORDS - 1]] if len(ends) > MOST_WORDS else line


def write_passages(out: Path, corpus: Path, numbers: Mapping[str, int]) -> dict[str, int]:
    """Write out/queries.parquet (ASKED): so many passages for each key, in the order of a hash of their docids.

    Those of test come first, those of train last: more training queries leave dev and test as they are. InputError when
    no passage of the corpus is long enough.
    """
    chosen = choose(parquet_files(corpus), sum(numbers.values()))
    if not chosen:
        raise InputError(
            f"queries: no passage of {corpus} has {FEWEST_WORDS} words or more, title included, so there is nothing "
            "to ask about. Bring queries of your own, or longer passages."
        )
    keys = [key for key in reversed((*SPLITS, "all")) for _ in range(numbers.get(key, 0))]
    # Where there are too few, each key has its share of those that there are.
    if len(chosen) < len(keys):
        keys = [keys[i * len(keys) // len(chosen)] for i in range(len(chosen))]
    rows = [
        {"qid": f"synthetic-{docid}", "text": text, "docid": docid, "key": key}
        for (docid, text), key in zip(chosen, keys, strict=True)
    ]
    write_parquet(table(rows, ASKED), out / "queries.parquet", GROUP_ROWS)
    return {"passages": len(rows), "wanted": sum(numbers.values())}


def choose(files: Sequence[Path], number: int) -> list[tuple[str, str]]:
    """(docid, what is shown) of the passages with the smallest hashes that are long enough, in the hashes' order.

    Holds as many passages as are wanted, however many there are.
    """
    # heapq has the smallest at its top: the hash is negated, so that the largest of those kept is.
    kept: list[tuple[int, str, str]] = []
    for key, batch, row in _hashed(files):
        if len(kept) == number and -key <= kept[0][0]:
            continue
        passage: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
        text = shown(passage["title"] or "", passage["text"] or "")
        if text is not None:
            (heapq.heappush if len(kept) < number else heapq.heapreplace)(kept, (-key, passage["docid"], text))
    return [(docid, text) for _, docid, text in sorted(kept, reverse=True)]


def _hashed(files: Sequence[Path]) -> Iterator[tuple[int, pa.RecordBatch, int]]:
    """Hash, batch, and row in it, of every passage."""
    for file in files:
        with pq.ParquetFile(file) as source:
            for batch in source.iter_batches(columns=["docid", "title", "text"]):
                for row, docid in enumerate(batch["docid"].to_pylist()):
                    yield int.from_bytes(hashlib.sha256(docid.encode()).digest()[:8]), batch, row
