"""Single postings of a mapped shard, and exact scores from them: compiled by numba."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aqe.compiled import borrowing, compiled, quick
from aqe.impacts.vectors import add
from aqe.index.shard import BLOCK, ESCAPE

F32, F64 = np.float32, np.float64


class Postings(NamedTuple):
    """The arrays of `aqe.index.shard.Arrays` that the loops read, and this corpus' BM25."""

    posting_starts: npt.NDArray[np.uint32]
    run_starts: npt.NDArray[np.uint32]
    run_blocks: npt.NDArray[np.uint16]
    run_sizes: npt.NDArray[np.uint16]
    docs: npt.NDArray[np.uint16]
    codes: npt.NDArray[np.uint8]
    code_tf: npt.NDArray[np.uint32]
    code_length: npt.NDArray[np.uint8]
    rare_terms: npt.NDArray[np.uint32]
    rare_docs: npt.NDArray[np.uint32]
    rare_tf: npt.NDArray[np.uint32]
    rare_length: npt.NDArray[np.uint8]
    code_saturation: npt.NDArray[np.float32]  # (256,), 0 for ESCAPE
    rare_saturation: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float32]  # (256,)
    ceilings: npt.NDArray[np.float32]  # (V,) highest saturation of each term, 0 as long as nobody asked


@borrowing
def term_score(weight: Any, tf: Any, norm: Any) -> Any:
    """Lucene's score of one term, float32 in every step."""
    return weight - weight / (F32(1) + F32(tf) * norm)


@borrowing
def lower_bound(values: Any, begin: Any, end: Any, wanted: Any) -> Any:
    """First place in values[begin:end], ascending, that is not below `wanted`."""
    while begin < end:
        middle = (begin + end) >> 1
        if values[middle] < wanted:
            begin = middle + 1
        else:
            end = middle
    return begin


@borrowing
def _rare(p: Postings, term: Any, doc: Any) -> Any:
    """Place of a posting among the rare ones."""
    begin = lower_bound(p.rare_terms, 0, len(p.rare_terms), term)
    end = lower_bound(p.rare_terms, begin, len(p.rare_terms), term + 1)
    return lower_bound(p.rare_docs, begin, end, doc)


@borrowing
def in_run(p: Postings, term: Any, doc: Any, begin: Any, size: Any) -> Any:
    """Term frequency and length byte of a passage in one run; (0, 0) when it is not there."""
    place = doc % BLOCK
    at = lower_bound(p.docs, begin, begin + size, place)
    if at == begin + size or p.docs[at] != place:
        return 0, 0
    code = p.codes[at]
    if code == ESCAPE:
        rare = _rare(p, term, doc)
        return np.int64(p.rare_tf[rare]), np.int64(p.rare_length[rare])
    return np.int64(p.code_tf[code]), np.int64(p.code_length[code])


@borrowing
def find(p: Postings, term: Any, doc: Any) -> Any:
    """Term frequency and length byte of a term in a passage; (0, 0) when it does not occur."""
    at, block = np.int64(p.posting_starts[term]), doc // BLOCK
    for r in range(p.run_starts[term], p.run_starts[term + 1]):
        size = np.int64(p.run_sizes[r]) + 1
        if p.run_blocks[r] == block:
            return in_run(p, term, doc, at, size)
        at += size
    return 0, 0


@quick
def score(p: Postings, terms: Any, weights: Any, docs: Any, out: Any) -> Any:
    """Lucene's float32 score of passages for each text: weights (T, L) -> out (L, len(docs)), 0 where none match."""
    lanes = weights.shape[1]
    sums = np.zeros(lanes, F64)
    for d in range(len(docs)):
        sums[:] = 0
        for t in range(len(terms)):
            tf, length = find(p, terms[t], docs[d])
            if tf:
                for lane in range(lanes):
                    if weights[t, lane] > 0:
                        sums[lane] += F64(term_score(weights[t, lane], tf, p.norms[length]))
        for lane in range(lanes):
            out[lane, d] = F32(sums[lane])


@borrowing
def accumulate(p: Postings, terms: Any, weights: Any, out: Any) -> Any:
    """Near scores of all passages for one text: weights (T,) added into out (N,)."""
    for t in range(len(terms)):
        term, weight = terms[t], weights[t]
        at = np.int64(p.posting_starts[term])
        for r in range(p.run_starts[term], p.run_starts[term + 1]):
            end = at + np.int64(p.run_sizes[r]) + 1
            add(out[np.int64(p.run_blocks[r]) * BLOCK :], p.docs, p.codes, at, end, p.code_saturation, weight)
            at = end
        i = lower_bound(p.rare_terms, 0, len(p.rare_terms), term)
        while i < len(p.rare_terms) and p.rare_terms[i] == term:
            out[p.rare_docs[i]] += weight * p.rare_saturation[i]
            i += 1


@borrowing
def code_in(docs: Any, codes: Any, place: Any, begin: Any, end: Any) -> Any:
    """Code of the posting for a place in the block, among begin to end; -1 when there is none."""
    at = lower_bound(docs, begin, end, place)
    return np.int64(codes[at]) if at < end and docs[at] == place else -1


@borrowing
def rare_saturation(p: Postings, term: Any, doc: Any) -> Any:
    """That of a posting whose code is ESCAPE."""
    return p.rare_saturation[_rare(p, term, doc)]


@compiled
def ceiling(p: Postings, term: Any) -> Any:
    """The highest saturation of a term in any passage."""
    if p.ceilings[term] == 0:
        highest, occurs = F32(0), np.zeros(256, np.bool_)
        for i in range(np.uint64(p.posting_starts[term]), np.uint64(p.posting_starts[term + 1])):
            occurs[p.codes[i]] = True
        for code in range(256):
            if occurs[code]:
                highest = max(highest, p.code_saturation[code])
        i = lower_bound(p.rare_terms, 0, len(p.rare_terms), term)
        while i < len(p.rare_terms) and p.rare_terms[i] == term:
            highest = max(highest, p.rare_saturation[i])
            i += 1
        p.ceilings[term] = highest
    return p.ceilings[term]
