"""TREC run and qrels files that trec_eval and ir-measures read to the same numbers as ours.

trec_eval sorts by score (float32) and breaks ties by docid *descending*; our tie rule is docid ascending. So scores in
a file strictly decrease in float32, and no tool has a tie to break.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aqe.artifact import write_text
from aqe.errors import InputError
from aqe.ranker import DEPTH, Hit


def strict_scores(scores: Sequence[float]) -> NDArray[np.float32]:
    """Scores in float32, strictly decreasing: each that does not fall is put one step below the one before it.

    The order of the input is kept. Shape (hits,). Raises InputError for a score that is not finite.
    """
    out = np.array(scores, dtype=np.float32)
    if not np.isfinite(out).all():
        raise InputError(f"score {out[~np.isfinite(out)][0]} in a run: scores must be finite")
    below = np.float32(-np.inf)
    for i in range(1, len(out)):
        if out[i] >= out[i - 1]:
            out[i] = np.nextafter(out[i - 1], below)
    return out


def _field(text: str) -> str:
    """An id as a field of a line: blanks are escaped as %XX, because they part the fields."""
    if not text:
        raise InputError("an empty qid or docid cannot stand in a TREC file")
    return "".join("".join(f"%{b:02X}" for b in c.encode()) if c.isspace() else c for c in text)


def write_run(path: Path, hits: Mapping[str, Sequence[Hit]], tag: str, depth: int = DEPTH) -> None:
    """Write `qid Q0 docid rank score tag` lines, `depth` hits a query at most.

    `hits` are in the order of the tie rule (score descending, then docid ascending by bytes). Nine significant digits
    bring back every float32 as it was.
    """
    lines = []
    for qid, of_query in hits.items():
        kept = of_query[:depth]
        for rank, ((docid, _), score) in enumerate(
            zip(kept, strict_scores([s for _, s in kept]), strict=True), start=1
        ):
            lines.append(f"{_field(qid)} Q0 {_field(docid)} {rank} {score:.9g} {_field(tag)}\n")
    write_text("".join(lines), path)


def write_qrels(path: Path, qrels: pa.Table) -> None:
    """Write `qid 0 docid relevance` lines from a table of `records.QRELS`."""
    columns = zip(*(qrels[c].to_pylist() for c in ("qid", "docid", "relevance")), strict=True)
    write_text("".join(f"{_field(q)} 0 {_field(d)} {r}\n" for q, d, r in columns), path)
