"""The layout of one document shard: its postings picked out of the dumped ones, sorted, cut into runs and coded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aqe.compiled import compiled
from aqe.errors import InputError
from aqe.index.shard import BLOCK, ESCAPE, Arrays, shard_name, text_column, write_shard

#: Postings of a term that numba's quicksort may still sort.
LONG = 512


@dataclass(frozen=True)
class Segment:
    """A dumped segment: its postings, and how its terms and documents are numbered in the whole."""

    postings: Path
    df: npt.NDArray[np.uint32]
    terms: npt.NDArray[np.uint32]  # global number of each term
    docs: npt.NDArray[np.uint32]  # number of each document in the order of docids
    lengths: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Everything a shard's task needs beside the dumped postings."""

    segments: tuple[Segment, ...]
    vocabulary: pa.LargeBinaryArray
    df: npt.NDArray[np.uint32]
    docids: pa.LargeBinaryArray
    header: dict[str, Any]


def make_shard(layout: Layout, out: Path, number: int, count: int, first: int, end: int) -> int:
    """Write the shard of the passages `first` to `end` in the order of docids; returns its postings."""
    counts = np.zeros(len(layout.vocabulary), np.int64)
    files = [np.memmap(s.postings, np.uint32, "r").reshape(-1, 2) if s.df.sum() else None for s in layout.segments]
    for segment, file in zip(layout.segments, files, strict=True):
        if file is not None:
            _count(file, segment.df, segment.terms, segment.docs, first, end, counts)
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    if starts[-1] >= 2**32 or end - first > 2**16 * BLOCK:
        raise InputError(
            f"a shard of {end - first} passages has {starts[-1]} postings, more than its format holds: lower "
            "index.passages_per_shard"
        )
    postings = np.empty(starts[-1], np.uint64)
    fill = starts[:-1].copy()
    for segment, file in zip(layout.segments, files, strict=True):
        if file is not None:
            _fill(file, segment.df, segment.terms, segment.docs, segment.lengths, first, end, fill, postings)
    for term in np.flatnonzero(_sort(starts, postings)):
        # Merging sorts what is made of sorted pieces in linear time; numba's quicksort would take quadratic.
        postings[starts[term] : starts[term + 1]].sort(kind="stable")
    kept = np.flatnonzero(counts)
    term_bytes, term_starts = text_column(layout.vocabulary.take(pa.array(kept)).to_pylist())
    docid_bytes, docid_starts = text_column(layout.docids[first:end].to_pylist())
    arrays = Arrays(
        term_bytes=term_bytes,
        term_starts=term_starts,
        df=layout.df[kept],
        posting_starts=np.append(starts[:-1][kept], starts[-1]).astype(np.uint32),
        **_encode(np.append(starts[:-1][kept], starts[-1]), postings),
        docid_bytes=docid_bytes,
        docid_starts=docid_starts,
    )
    write_shard(out / shard_name(number, count), arrays, **layout.header)
    return len(postings)


@compiled
def _count(file: Any, df: Any, terms: Any, docs: Any, first: Any, end: Any, counts: Any) -> Any:
    at = 0
    for t in range(len(df)):
        for _ in range(df[t]):
            doc = docs[file[at, 0]]
            counts[terms[t]] += first <= doc and doc < end
            at += 1


@compiled
def _fill(
    file: Any, df: Any, terms: Any, docs: Any, lengths: Any, first: Any, end: Any, fill: Any, postings: Any
) -> Any:
    """A posting: passage (32 bits), term frequency (24), length byte (8)."""
    at = 0
    for t in range(len(df)):
        for _ in range(df[t]):
            document = file[at, 0]
            doc = docs[document]
            if first <= doc and doc < end:
                packed = np.uint64(file[at, 1]) << np.uint64(8) | np.uint64(lengths[document])
                postings[fill[terms[t]]] = np.uint64(doc - first) << np.uint64(32) | packed
                fill[terms[t]] += 1
            at += 1


@compiled
def _sort(starts: Any, postings: Any) -> Any:
    """Sort each term's postings, but for the long ones that are not sorted yet: those are marked in the result."""
    left = np.zeros(len(starts) - 1, np.bool_)
    for t in range(len(starts) - 1):
        begin, end = starts[t], starts[t + 1]
        for i in range(begin + 1, end):
            if postings[i] < postings[i - 1]:
                left[t] = end - begin > LONG
                if not left[t]:
                    postings[begin:end].sort()
                break
    return left


def _encode(starts: npt.NDArray[np.int64], postings: npt.NDArray[np.uint64]) -> dict[str, npt.NDArray[Any]]:
    """Runs, places and codes of postings in the order of (term, passage)."""
    histogram = _histogram(postings)
    common = np.argsort(-histogram, kind="stable")[:ESCAPE]
    codes = np.full(len(histogram), ESCAPE, np.uint8)
    codes[common] = np.arange(len(common), dtype=np.uint8)
    num_runs, num_rare = _sizes(starts, postings, codes)
    arrays = {
        "run_starts": np.zeros(len(starts), np.uint32),
        "run_blocks": np.zeros(num_runs, np.uint16),
        "run_sizes": np.zeros(num_runs, np.uint16),
        "docs": np.zeros(len(postings), np.uint16),
        "codes": np.zeros(len(postings), np.uint8),
        "rare_terms": np.zeros(num_rare, np.uint32),
        "rare_docs": np.zeros(num_rare, np.uint32),
        "rare_tf": np.zeros(num_rare, np.uint32),
        "rare_length": np.zeros(num_rare, np.uint8),
    }
    _write(starts, postings, codes, *arrays.values())
    return {"code_tf": (common >> 8).astype(np.uint32), "code_length": (common & 255).astype(np.uint8), **arrays}


@compiled
def _histogram(postings: Any) -> Any:
    """How often each pair of term frequency (below 256) and length byte occurs."""
    counts = np.zeros(1 << 16, np.int64)
    for posting in postings:
        pair = posting & np.uint64(0xFFFFFFFF)
        if pair < np.uint64(1 << 16):
            counts[pair] += 1
    return counts


@compiled
def _code(posting: Any, codes: Any) -> Any:
    pair = posting & np.uint64(0xFFFFFFFF)
    return codes[pair] if pair < np.uint64(1 << 16) else np.uint8(ESCAPE)


@compiled
def _sizes(starts: Any, postings: Any, codes: Any) -> Any:
    runs, rare = 0, 0
    for t in range(len(starts) - 1):
        last: Any = -1
        for i in range(starts[t], starts[t + 1]):
            block = np.int64(postings[i] >> np.uint64(32)) // BLOCK
            runs += block != last
            last = block
            rare += _code(postings[i], codes) == ESCAPE
    return runs, rare


@compiled
def _write(
    starts: Any,
    postings: Any,
    codes: Any,
    run_starts: Any,
    blocks: Any,
    sizes: Any,
    docs: Any,
    out: Any,
    rare_terms: Any,
    rare_docs: Any,
    rare_tf: Any,
    rare_length: Any,
) -> Any:
    run, rare = -1, 0
    for t in range(len(starts) - 1):
        last: Any = -1
        run_starts[t] = run + 1
        for i in range(starts[t], starts[t + 1]):
            doc = np.int64(postings[i] >> np.uint64(32))
            if doc // BLOCK != last:
                run += 1
                last = doc // BLOCK
                blocks[run] = last
            else:
                sizes[run] += np.uint16(1)
            docs[i] = doc % BLOCK
            code = _code(postings[i], codes)
            out[i] = code
            if code == ESCAPE:
                pair = postings[i] & np.uint64(0xFFFFFFFF)
                rare_terms[rare], rare_docs[rare] = t, doc
                rare_tf[rare], rare_length[rare] = pair >> np.uint64(8), pair & np.uint64(255)
                rare += 1
    run_starts[len(starts) - 1] = run + 1
