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
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from aqe.compiled import compiled
from aqe.index.shard import BLOCK, ESCAPE

#: Bytes of accumulators that stay in the first-level cache: a block is worked through in tiles of so many.
TILE_BYTES = 65_536
#: Passages that are looked at one by one where one of them is near the gold score.
CHUNK = 8
#: Bytes at which a vector of lanes may be loaded whole.
ALIGN = 64
F32, F64 = np.float32, np.float64
I32, I64 = ir.IntType(32), ir.IntType(64)


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
    counts: npt.NDArray[np.int32]  # (2, lanes)
    above: npt.NDArray[np.int64]  # (lanes,) result: passages with a score above the gold score
    before: npt.NDArray[np.int64]  # (lanes,) result: passages with the same score and a smaller docid
    num_active: npt.NDArray[np.int64]  # (2,) terms of this block with a run, and with rare postings
    active: npt.NDArray[np.int64]
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
        np.zeros(2 * lanes, np.int32),
        np.zeros(lanes, np.int64),
        np.zeros(lanes, np.int64),
        np.zeros(2, np.int64),
        *(np.zeros(terms, np.int64) for _ in range(7)),
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


# The two loops whose machine code decides are written as LLVM vectors: numba's own would not keep the lanes in one
# register. How many lanes there are is the length of the tuple `width`, so that each number is compiled for itself.


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to an array's first element."""
    return context.make_array(kind)(context, builder, array).data


def _row(builder: Any, data: Any, offset: Any, vector: Any) -> Any:
    """Pointer to the lanes that start at data[offset]."""
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def add_run(
    typing: Any,
    acc: Any,
    first: Any,
    limit: Any,
    docs: Any,
    codes: Any,
    begin: Any,
    end: Any,
    table: Any,
    weights: Any,
    term: Any,
    width: Any,
) -> Any:
    """acc[doc - first, :] += weights[term, :] * table[code] for the postings from `begin` with doc < limit.

    Returns the place of the first posting that was not added, `end` at most.
    """
    integer = types.int64
    signature = integer(acc, integer, integer, docs, codes, integer, integer, table, weights, integer, width)
    lanes = width.count

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc, docs, codes, table, weights = (
            _data(context, builder, signature.args[i], args[i]) for i in (0, 3, 4, 7, 8)
        )
        _, first, limit, _, _, begin, end, _, _, term, _ = args
        vector, align, size = ir.VectorType(ir.FloatType(), lanes), min(ALIGN, 4 * lanes), ir.Constant(I64, lanes)
        shifted = builder.gep(acc, [builder.neg(builder.mul(first, size))])
        weight = builder.load(_row(builder, weights, builder.mul(term, size), vector), align=4)
        undefined, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        contract = ("contract",)  # A fused multiply-add where the machine has one.
        before = builder.block
        more, inside, body, after = (builder.append_basic_block(name) for name in ("more", "inside", "body", "after"))
        builder.branch(more)
        builder.position_at_end(more)
        i = builder.phi(I64)
        i.add_incoming(begin, before)
        builder.cbranch(builder.icmp_signed("<", i, end), inside, after)
        builder.position_at_end(inside)
        doc = builder.zext(builder.load(builder.gep(docs, [i])), I64)
        builder.cbranch(builder.icmp_signed("<", doc, limit), body, after)
        builder.position_at_end(body)
        code = builder.zext(builder.load(builder.gep(codes, [i])), I64)
        value = builder.insert_element(undefined, builder.load(builder.gep(table, [code])), ir.Constant(I32, 0))
        product = builder.fmul(weight, builder.shuffle_vector(value, undefined, zeros), flags=contract)
        at = _row(builder, shifted, builder.mul(doc, size), vector)
        builder.store(builder.fadd(product, builder.load(at, align=align), flags=contract), at, align=align)
        i.add_incoming(builder.add(i, ir.Constant(I64, 1)), body)
        builder.branch(more)
        builder.position_at_end(after)
        return i

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def compare(typing: Any, acc: Any, begin: Any, end: Any, low: Any, high: Any, counts: Any, width: Any) -> Any:
    """counts[0, :] += acc >= low, counts[1, :] += acc > high over the rows begin to end."""
    signature = types.void(acc, types.int64, types.int64, low, high, counts, width)
    lanes = width.count

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc, low, high, counts = (_data(context, builder, signature.args[i], args[i]) for i in (0, 3, 4, 5))
        vector, mask, align = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(I32, lanes), min(ALIGN, 4 * lanes)
        size, zero = ir.Constant(I64, lanes), ir.Constant(I64, 0)
        bounds = [builder.load(_row(builder, bound, zero, vector), align=4) for bound in (low, high)]
        totals = [_row(builder, counts, ir.Constant(I64, i * lanes), mask) for i in (0, 1)]
        sums = [cgutils.alloca_once_value(builder, builder.load(total, align=4)) for total in totals]
        with cgutils.for_range_slice(builder, args[1], args[2], ir.Constant(I64, 1), I64) as (row, _):
            value = builder.load(_row(builder, acc, builder.mul(row, size), vector), align=align)
            for total, bound, sign in zip(sums, bounds, (">=", ">"), strict=True):
                hit = builder.sext(builder.fcmp_ordered(sign, value, bound), mask)
                builder.store(builder.sub(builder.load(total), hit), total)
        for total, added in zip(totals, sums, strict=True):
            builder.store(builder.load(added), total, align=4)
        return context.get_dummy_value()

    return signature, generate


@compiled
def _near(p: Postings, q: Lanes, base: Any, begin: Any, end: Any, s: Any, width: Any) -> Any:
    """Count those of the rows begin to end that lie between low and high, by their exact scores."""
    lanes = len(width)
    for row in range(begin, end):
        for lane in range(lanes):
            value = s.acc[row * lanes + lane]
            if value >= q.low[lane] and value <= q.high[lane]:
                doc, total = base + row, F64(0)
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
def _sweep(p: Postings, q: Lanes, base: Any, begin: Any, end: Any, s: Any, width: Any) -> Any:
    """Count the rows begin to end of a tile that starts at the passage `base`."""
    lanes = len(width)
    s.counts[:] = 0
    compare(s.acc, begin, end, q.low, q.high, s.counts, width)
    differ = False
    for lane in range(lanes):
        s.above[lane] += s.counts[lanes + lane]
        differ |= s.counts[lane] != s.counts[lanes + lane]
    if not differ:
        return
    for start in range(begin, end, CHUNK):
        stop = min(start + CHUNK, end)
        s.counts[:] = 0
        compare(s.acc, start, stop, q.low, q.high, s.counts, width)
        for lane in range(lanes):
            if s.counts[lane] != s.counts[lanes + lane]:
                _near(p, q, base, start, stop, s, width)
                break


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
                t = s.active[k]
                s.place[t] = add_run(
                    *(s.acc, first, first + tile, p.docs, p.codes, s.place[t], s.run_end[t]),
                    *(p.code_saturation, q.weights, t, width),
                )
            for k in range(s.num_active[1]):
                _add_rare(p, q, s.active_rare[k], base, base + size, s, width)
            split = q.zero_gold - base
            if 0 <= split < size:
                _sweep(p, q, base, 0, split, s, width)
                _matched_before(q, s, width)
                _sweep(p, q, base, split, size, s, width)
            else:
                _sweep(p, q, base, 0, size, s, width)
            s.acc[: size * lanes] = 0
    if q.zero_gold >= num_docs:
        _matched_before(q, s, width)
