"""The inner loops of exact gold ranks, compiled by numba.

Candidates of one query are the lanes of a vector: a passage's accumulators for all of them lie side by side, and one
posting adds weight times saturation to each of them with one load, one multiply-add and one store. Block after block
of passages, so that the accumulators stay in the cache; a term keeps its place from block to block.

The sums of this pass are float32 and near Lucene's; `low` and `high` stand around the gold score as far off as the
rounding can reach. What lies between is scored again in Lucene's own arithmetic, so every count is exact.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aqe.compiled import compiled
from aqe.index.shard import BLOCK, ESCAPE
from aqe.rank.vectors import ALIGN, WIDE, add_run, compare

#: Bytes of accumulators that stay in the second-level cache: a block is worked through in tiles of so many.
TILE_BYTES = 262_144
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


class Lanes(NamedTuple):
    """What one counting pass asks: terms (T,) and, for each lane, their weights and the gold passage."""

    terms: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]  # (T, lanes)
    scores: npt.NDArray[np.float32]  # gold scores
    low: npt.NDArray[np.float32]  # a sum below is not above the gold score
    high: npt.NDArray[np.float32]  # a sum above surely is
    golds: npt.NDArray[np.int64]  # number of the gold passage, or of the place where it would stand
    zero_gold: int  # that of the lanes whose gold score is 0: `before` counts what does match before it. -1: none


class Scratch(NamedTuple):
    """What a thread's passes write to; nothing is allocated for a query."""

    acc: npt.NDArray[np.float32]  # (tile, lanes)
    counts: npt.NDArray[np.int32]  # (WIDE,)
    near: npt.NDArray[np.uint16]  # (tile in vectors,) which sums of a vector are near their bounds
    above: npt.NDArray[np.int64]  # (lanes,) result: passages with a score above the gold score
    before: npt.NDArray[np.int64]  # (lanes,) result: passages with the same score and a smaller docid
    num_active: npt.NDArray[np.int64]  # (2,) terms of this block with a run, and with rare postings
    active: npt.NDArray[np.int64]
    next: npt.NDArray[np.int64]  # place in the block of each active term's next posting, BLOCK when it has none left
    active_rare: npt.NDArray[np.int64]
    run: npt.NDArray[np.int64]  # next run of each term
    run_at: npt.NDArray[np.int64]  # first posting of the run in this block
    run_end: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]  # next posting
    rare: npt.NDArray[np.int64]  # next rare posting


def make_scratch(terms: int, lanes: int) -> Scratch:
    """Room for queries of so many terms and lanes."""
    raw = np.zeros((TILE_BYTES + ALIGN) // 4, F32)
    # Rows of lanes are loaded whole: they must not straddle two cache lines.
    start = -raw.ctypes.data // 4 % (ALIGN // 4)
    return Scratch(
        raw[start : start + TILE_BYTES // 4],
        np.zeros(WIDE, np.int32),
        np.zeros(TILE_BYTES // (4 * WIDE), np.uint16),
        np.zeros(lanes, np.int64),
        np.zeros(lanes, np.int64),
        np.zeros(2, np.int64),
        *(np.zeros(terms, np.int64) for _ in range(8)),
    )


@compiled
def term_score(weight: Any, tf: Any, norm: Any) -> Any:
    """Lucene's score of one term, float32 in every step."""
    return weight - weight / (F32(1) + F32(tf) * norm)


@compiled
def lower_bound(values: Any, begin: Any, end: Any, wanted: Any) -> Any:
    """First place in values[begin:end], ascending, that is not below `wanted`."""
    while begin < end:
        middle = (begin + end) >> 1
        if values[middle] < wanted:
            begin = middle + 1
        else:
            end = middle
    return begin


@compiled
def _rare(p: Postings, term: Any, doc: Any) -> Any:
    """Term frequency and length byte of a posting among the rare ones."""
    begin = lower_bound(p.rare_terms, 0, len(p.rare_terms), term)
    end = lower_bound(p.rare_terms, begin, len(p.rare_terms), term + 1)
    at = lower_bound(p.rare_docs, begin, end, doc)
    return np.int64(p.rare_tf[at]), np.int64(p.rare_length[at])


@compiled
def _in_run(p: Postings, term: Any, doc: Any, begin: Any, size: Any) -> Any:
    """Term frequency and length byte of a passage in one run; (0, 0) when it is not there."""
    place = doc % BLOCK
    at = lower_bound(p.docs, begin, begin + size, place)
    if at == begin + size or p.docs[at] != place:
        return 0, 0
    code = p.codes[at]
    if code == ESCAPE:
        return _rare(p, term, doc)
    return np.int64(p.code_tf[code]), np.int64(p.code_length[code])


@compiled
def find(p: Postings, term: Any, doc: Any) -> Any:
    """Term frequency and length byte of a term in a passage; (0, 0) when it does not occur."""
    at, block = np.int64(p.posting_starts[term]), doc // BLOCK
    for r in range(p.run_starts[term], p.run_starts[term + 1]):
        size = np.int64(p.run_sizes[r]) + 1
        if p.run_blocks[r] == block:
            return _in_run(p, term, doc, at, size)
        at += size
    return 0, 0


@compiled
def score(p: Postings, terms: Any, weights: Any, docs: Any, out: Any) -> Any:
    """Lucene's float32 score of passages for each lane: weights (T, L) -> out (L, len(docs)), 0 where none match."""
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


@compiled
def accumulate(p: Postings, terms: Any, weights: Any, out: Any) -> Any:
    """Near scores of all passages for one text: weights (T,) added into out (N,)."""
    for t in range(len(terms)):
        term, weight = terms[t], weights[t]
        at = np.int64(p.posting_starts[term])
        for r in range(p.run_starts[term], p.run_starts[term + 1]):
            base = np.int64(p.run_blocks[r]) * BLOCK
            for i in range(at, at + np.int64(p.run_sizes[r]) + 1):
                out[base + p.docs[i]] += weight * p.code_saturation[p.codes[i]]
            at += np.int64(p.run_sizes[r]) + 1
        i = lower_bound(p.rare_terms, 0, len(p.rare_terms), term)
        while i < len(p.rare_terms) and p.rare_terms[i] == term:
            out[p.rare_docs[i]] += weight * p.rare_saturation[i]
            i += 1


@compiled
def _exactly(p: Postings, q: Lanes, doc: Any, lane: Any, s: Any) -> Any:
    """Count one passage that is near a lane's gold score, by its exact score."""
    total = F64(0)
    for k in range(s.num_active[0]):
        t = s.active[k]
        if q.weights[t, lane] > 0:
            tf, length = _in_run(p, q.terms[t], doc, s.run_at[t], s.run_end[t] - s.run_at[t])
            if tf:
                total += F64(term_score(q.weights[t, lane], tf, p.norms[length]))
    exact = F32(total)
    s.above[lane] += exact > q.scores[lane]
    s.before[lane] += exact == q.scores[lane] and doc < q.golds[lane]


@compiled
def _one_by_one(p: Postings, q: Lanes, base: Any, begin: Any, end: Any, s: Any, width: Any) -> Any:
    """Count the rows begin to end of the tile that starts at passage `base`."""
    lanes = len(width)
    for row in range(begin, end):
        for lane in range(lanes):
            value = s.acc[row * lanes + lane]
            if value > q.high[lane]:
                s.above[lane] += 1
            elif value >= q.low[lane]:
                _exactly(p, q, base + row, lane, s)


@compiled
def _sweep(p: Postings, q: Lanes, base: Any, size: Any, s: Any, width: Any) -> Any:
    """The same for a whole tile, in vectors, and clear it. Behind its last row all sums are 0: below every bound."""
    lanes = len(width)
    vectors = (size * lanes + WIDE - 1) // WIDE
    compare(s.acc, q.low, q.high, s.counts, s.near, vectors, width)
    for i in range(WIDE):
        s.above[i % lanes] += s.counts[i]
    for v in range(vectors):
        if s.near[v]:
            for i in range(WIDE):
                if s.near[v] >> i & 1:
                    at = v * WIDE + i
                    _exactly(p, q, base + at // lanes, at % lanes, s)


@compiled
def _matched_before(q: Lanes, s: Any, width: Any) -> Any:
    """All before the gold passage of the lanes that match nothing is counted now."""
    for lane in range(len(width)):
        if q.scores[lane] == 0:
            s.before[lane] = s.above[lane]


@compiled
def _open_block(p: Postings, terms: Any, block: Any, s: Any) -> Any:
    """Find the run of each term in a block; the terms that have one are active."""
    active = rare = 0
    for t in range(len(terms)):
        i, r = s.rare[t], s.run[t]
        if i < len(p.rare_terms) and p.rare_terms[i] == terms[t] and p.rare_docs[i] < (block + 1) * BLOCK:
            s.active_rare[rare] = t
            rare += 1
        s.run_at[t] = s.run_end[t]
        if r < p.run_starts[terms[t] + 1] and p.run_blocks[r] == block:
            s.run[t] = r + 1
            s.run_end[t] = s.run_at[t] + np.int64(p.run_sizes[r]) + 1
            s.place[t] = s.run_at[t]
            s.active[active] = t
            s.next[active] = p.docs[s.run_at[t]]
            active += 1
    s.num_active[0], s.num_active[1] = active, rare


@compiled
def _add_rare(p: Postings, q: Lanes, t: Any, first: Any, limit: Any, s: Any, width: Any) -> Any:
    """The rare postings of a term in the passages first to limit."""
    lanes, term, i = len(width), q.terms[t], s.rare[t]
    while i < len(p.rare_terms) and p.rare_terms[i] == term and p.rare_docs[i] < limit:
        for lane in range(lanes):
            s.acc[(np.int64(p.rare_docs[i]) - first) * lanes + lane] += q.weights[t, lane] * p.rare_saturation[i]
        i += 1
    s.rare[t] = i


@compiled
def count(p: Postings, q: Lanes, num_docs: Any, s: Any, width: Any) -> Any:
    """The counting pass for len(width) lanes (4, 8 or 16): fills s.above and s.before."""
    lanes = len(width)
    tile = TILE_BYTES // (4 * lanes)
    s.above[:lanes] = 0
    s.before[:lanes] = 0
    for t in range(len(q.terms)):
        s.run[t] = p.run_starts[q.terms[t]]
        s.run_end[t] = p.posting_starts[q.terms[t]]
        s.rare[t] = lower_bound(p.rare_terms, 0, len(p.rare_terms), q.terms[t])
    for block_start in range(0, num_docs, BLOCK):
        _open_block(p, q.terms, block_start // BLOCK, s)
        for first in range(0, min(BLOCK, num_docs - block_start), tile):
            base = block_start + first
            size = min(tile, num_docs - base)
            for k in range(s.num_active[0]):
                if s.next[k] >= first + tile:
                    continue
                t = s.active[k]
                s.place[t] = add_run(
                    *(s.acc, first, first + tile, p.docs, p.codes, s.place[t], s.run_end[t]),
                    *(p.code_saturation, q.weights, t, width),
                )
                s.next[k] = p.docs[s.place[t]] if s.place[t] < s.run_end[t] else BLOCK
            for k in range(s.num_active[1]):
                _add_rare(p, q, s.active_rare[k], base, base + size, s, width)
            split = q.zero_gold - base
            if 0 <= split < size:
                _one_by_one(p, q, base, 0, split, s, width)
                _matched_before(q, s, width)
                _one_by_one(p, q, base, split, size, s, width)
                s.acc[: size * lanes] = 0
            else:
                _sweep(p, q, base, size, s, width)
    if q.zero_gold >= num_docs:
        _matched_before(q, s, width)
