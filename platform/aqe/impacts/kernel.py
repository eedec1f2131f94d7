"""The inner loops of exact gold ranks, compiled by numba.

The candidates of one query share the query's words: these are added up once, and every candidate starts from that sum,
adds its own words and is compared with its gold score. All of it block after block of passages, so that the sums stay
near the core. Words with long lists of postings weigh little: they are looked up in the few passages that the other
words, with all that the long lists could bring, may have lifted above the gold score; and where the shared words leave
all passages of a block below it, all words are looked up but those without which none gets there (after MaxScore,
Turtle & Flood 1995).

The sums of this pass are float32 and near Lucene's; `low` and `high` stand around the gold score as far off as the
rounding can reach. What lies between is scored again in Lucene's own arithmetic, so every count is exact.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aqe.compiled import borrowing, compiled
from aqe.impacts.bounds import Bounds, Texts, bounds
from aqe.impacts.lookup import Postings, code_in, in_run, lower_bound, rare_saturation, term_score
from aqe.impacts.vectors import ALIGN, WIDE, add, at_least, clear, highest, ones, prefetch
from aqe.index.shard import BLOCK, ESCAPE

F32, F64 = np.float32, np.float64
#: So many passages of a block are looked up one by one; for more, adding another list costs less.
FEW = 32
#: A list of postings is long when it has more than one in so many passages.
LONG = 25


class Scratch(NamedTuple):
    """What a thread's passes write to."""

    base: npt.NDArray[np.float32]  # (BLOCK,) sums of what all texts share
    own: npt.NDArray[np.float32]  # (BLOCK,) sums of what one text adds; 0 between two of them
    added: npt.NDArray[np.int64]  # (1,) postings of all passes, for the curious
    rows: npt.NDArray[np.int64]  # (BLOCK,) places in the block
    sums: npt.NDArray[np.float32]  # (BLOCK,) of these
    above: npt.NDArray[np.int64]  # (L,) passages with a score above the gold score
    before: npt.NDArray[np.int64]  # (L,) passages with the same score and a smaller docid
    run: npt.NDArray[np.int64]  # (T,) next run of each term
    begin: npt.NDArray[np.int64]  # (T,) its postings in this block
    end: npt.NDArray[np.int64]
    next_end: npt.NDArray[np.int64]  # end of those in the next block
    rare: npt.NDArray[np.int64]  # (T,) its rare postings in this block
    rare_end: npt.NDArray[np.int64]


def make_scratch(terms: int, texts: int) -> Scratch:
    """Room for queries of so many terms and texts."""
    return Scratch(
        *(_aligned(BLOCK), _aligned(BLOCK), np.zeros(1, np.int64), np.zeros(BLOCK, np.int64), np.zeros(BLOCK, F32)),
        *(np.zeros(texts, np.int64) for _ in range(2)),
        *(np.zeros(terms, np.int64) for _ in range(6)),
    )


def _aligned(size: int) -> npt.NDArray[np.float32]:
    """Zeros that can be loaded in whole vectors."""
    raw = np.zeros(size + ALIGN // 4, F32)
    start = -raw.ctypes.data // 4 % (ALIGN // 4)
    return raw[start : start + size]


@borrowing
def _exactly(p: Postings, q: Texts, doc: Any, text: Any, s: Any) -> Any:
    """Count one passage that is near a text's gold score, by its exact score."""
    total = F64(0)
    for t in range(len(q.terms)):
        if q.weights[t, text] > 0 and s.begin[t] < s.end[t]:
            tf, length = in_run(p, q.terms[t], doc, s.begin[t], s.end[t] - s.begin[t])
            if tf:
                total += F64(term_score(q.weights[t, text], tf, p.norms[length]))
    exact = F32(total)
    s.above[text] += exact > q.scores[text]
    s.before[text] += exact == q.scores[text] and doc < q.golds[text]


@borrowing
def _open_block(p: Postings, terms: Any, block: Any, s: Any) -> Any:
    """Find the postings of each term in a block, the one after the last, and in the next."""
    for t in range(len(terms)):
        i = s.rare_end[t]
        s.begin[t], s.rare[t] = s.end[t], i
        s.end[t] = s.next_end[t]
        r = s.run[t]
        if r < p.run_starts[terms[t] + 1] and p.run_blocks[r] == block + 1:
            s.run[t] = r + 1
            s.next_end[t] += np.int64(p.run_sizes[r]) + 1
        while i < len(p.rare_terms) and p.rare_terms[i] == terms[t] and p.rare_docs[i] < (block + 1) * BLOCK:
            i += 1
        s.rare_end[t] = i


@borrowing
def _add_rare(p: Postings, t: Any, weight: Any, first: Any, s: Any, sums: Any) -> Any:
    """The rare postings of a term in the block that starts at passage `first`."""
    for i in range(s.rare[t], s.rare_end[t]):
        sums[p.rare_docs[i] - first] += weight * p.rare_saturation[i]


@borrowing
def _add_term(p: Postings, t: Any, weight: Any, first: Any, s: Any, sums: Any) -> Any:
    """All postings of a term in that block; those of the next one are asked for."""
    add(sums, p.docs, p.codes, s.begin[t], s.end[t], p.code_saturation, weight)
    s.added[0] += s.end[t] - s.begin[t]
    if s.rare[t] < s.rare_end[t]:
        _add_rare(p, t, weight, first, s, sums)
    prefetch(p.docs, s.end[t], s.next_end[t])
    prefetch(p.codes, s.end[t], s.next_end[t])


@borrowing
def _scan(base: Any, own: Any, reach: Any, high: Any, limit: Any, rows: Any, sums: Any, vectors: Any) -> Any:
    """Places and values of the sums from `reach` to `high`; returns how many, or -1 when they are more than `limit`.

    And how many are higher.
    """
    num_rows = above = 0
    for v in range(vectors):
        mask = at_least(base, own, v * WIDE, reach)
        if mask:
            sure = at_least(base, own, v * WIDE, high)
            above += ones(sure)
            mask &= ~sure
            i = v * WIDE
            while mask:
                if mask & 1:
                    if num_rows == limit:
                        return -1, 0
                    rows[num_rows], sums[num_rows] = i, base[i] + own[i]
                    num_rows += 1
                mask >>= 1
                i += 1
    return num_rows, above


@borrowing
def _reaching(p: Postings, t: Any, weight: Any, reach: Any, s: Any) -> Any:
    """Places and values of the sums that a term's postings lift to `reach`, without writing the sums.

    Returns how many, or -1 when they are more than FEW. They are taken out of `own`, not to be found again.
    """
    num_rows = 0
    for i in range(np.uint64(s.begin[t]), np.uint64(s.end[t])):
        doc = p.docs[i]
        value = s.base[doc] + s.own[doc] + weight * p.code_saturation[p.codes[i]]
        if value >= reach:
            if num_rows == FEW:
                return -1
            s.rows[num_rows], s.sums[num_rows] = doc, value
            s.own[doc] = 0
            num_rows += 1
    s.added[0] += s.end[t] - s.begin[t]
    prefetch(p.docs, s.end[t], s.next_end[t])
    prefetch(p.codes, s.end[t], s.next_end[t])
    return num_rows


@borrowing
def _taken_back(p: Postings, t: Any, reach: Any, num_rows: Any, s: Any) -> Any:
    """Take a term's postings out of `own`; what had reached as far is added to `rows`, as in _reaching."""
    for i in range(np.uint64(s.begin[t]), np.uint64(s.end[t])):
        doc = p.docs[i]
        value = s.base[doc] + s.own[doc]
        s.own[doc] = 0
        if value >= reach:
            if num_rows == FEW:
                return -1
            s.rows[num_rows], s.sums[num_rows] = doc, value
            num_rows += 1
    return num_rows


@borrowing
def _touched(p: Postings, m: Bounds, begin: Any, split: Any, first: Any, reach: Any, s: Any) -> Any:
    """Where `base` does not reach as far, only passages with a posting of the own terms from begin to split can.

    Places and values of those that do; returns how many, or -1 when they are more than FEW. `own` is left as 0.
    """
    last = m.own_terms[split - 1]
    # The longest list need not be written, unless it has rare postings.
    written = split - 1 if s.rare[last] == s.rare_end[last] else split
    for k in range(begin, written):
        _add_term(p, m.own_terms[k], m.own_weights[k], first, s, s.own)
    num_rows = _reaching(p, last, m.own_weights[written], reach, s) if written < split else 0
    for k in range(begin, written):
        if num_rows >= 0:
            num_rows = _taken_back(p, m.own_terms[k], reach, num_rows, s)
    if num_rows < 0:
        clear(s.own, BLOCK)
    return num_rows


@borrowing
def _split(m: Bounds, text: Any, top: Any, s: Any) -> Any:
    """First of a text's own terms that need only be looked up in a block, and what these can bring together.

    Without those before it no passage reaches the gold score; or they are the short ones, where `base` reaches it.
    """
    split, far = m.own_starts[text + 1], F32(0)
    while split > m.own_starts[text]:
        t = m.own_terms[split - 1]
        if s.begin[t] < s.end[t]:
            further = far + m.own_most[split - 1]
            if split <= m.long_starts[text] and top + further >= m.bar[text]:
                break
            far = further
        split -= 1
    return split, far


@borrowing
def _look_up(
    p: Postings, q: Texts, m: Bounds, text: Any, first: Any, num_rows: Any, split: Any, far: Any, s: Any
) -> Any:
    """Count the passages in `rows`, each looked up in the lists from `split` on as long as that can decide.

    `far`: what these lists can bring together.
    """
    for i in range(num_rows):
        total, left = F64(s.sums[i]), F64(far)
        for k in range(split, m.own_starts[text + 1]):
            if total + left < m.bar[text] or total >= m.high[text]:
                break
            t = m.own_terms[k]
            if s.begin[t] == s.end[t]:
                continue
            left -= m.own_most[k]
            code = code_in(p.docs, p.codes, s.rows[i], s.begin[t], s.end[t])
            if code == ESCAPE:
                total += m.own_weights[k] * rare_saturation(p, q.terms[t], first + s.rows[i])
            elif code >= 0:
                total += m.own_weights[k] * p.code_saturation[code]
        if total >= m.high[text]:
            s.above[text] += 1
        elif total >= m.low[text]:
            _exactly(p, q, first + s.rows[i], text, s)


@borrowing
def _start(p: Postings, q: Texts, s: Any) -> Any:
    """Before the first block."""
    s.above[: len(q.scores)] = 0
    s.before[: len(q.scores)] = 0
    for t in range(len(q.terms)):
        s.run[t] = p.run_starts[q.terms[t]]
        s.end[t] = s.next_end[t] = p.posting_starts[q.terms[t]]
        s.rare_end[t] = lower_bound(p.rare_terms, 0, len(p.rare_terms), q.terms[t])


@borrowing
def _count(p: Postings, q: Texts, m: Bounds, num_docs: Any, s: Any) -> Any:
    """Count for each text what stands before its gold passage."""
    terms, texts = q.weights.shape
    _start(p, q, s)
    _open_block(p, q.terms, -1, s)
    for first in range(0, num_docs, BLOCK):
        size = min(BLOCK, num_docs - first)
        # Behind the last passage all sums are 0: below every bound.
        vectors = (size + WIDE - 1) // WIDE
        _open_block(p, q.terms, first // BLOCK, s)
        clear(s.base, BLOCK)
        for t in range(terms):
            if m.shared[t] > 0:
                _add_term(p, t, m.shared[t], first, s, s.base)
        top = highest(s.base, vectors)
        for text in range(texts):
            begin, end = m.own_starts[text], m.own_starts[text + 1]
            split, far = _split(m, text, top, s)
            if top < m.bar[text] - far:
                if split == begin:
                    continue
                num_rows = _touched(p, m, begin, split, first, m.bar[text] - far, s)
                if num_rows >= 0:
                    _look_up(p, q, m, text, first, num_rows, split, far, s)
                    continue
            for k in range(begin, split):
                _add_term(p, m.own_terms[k], m.own_weights[k], first, s, s.own)
            while True:
                limit = FEW if split < end else BLOCK
                num_rows, above = _scan(s.base, s.own, m.bar[text] - far, m.high[text], limit, s.rows, s.sums, vectors)
                if num_rows >= 0:
                    break
                # Too many for a look-up: one list more is added.
                _add_term(p, m.own_terms[split], m.own_weights[split], first, s, s.own)
                if s.begin[m.own_terms[split]] < s.end[m.own_terms[split]]:
                    far -= m.own_most[split]
                split += 1
            clear(s.own, BLOCK)
            s.above[text] += above
            _look_up(p, q, m, text, first, num_rows, split, far, s)


@compiled
def count(p: Postings, q: Texts, num_docs: Any, s: Any) -> Any:
    """For each text, how many passages stand before its gold passage: (L,). Gold scores are above 0."""
    _count(p, q, bounds(p, q, num_docs // LONG), num_docs, s)
    texts = len(q.scores)
    return s.above[:texts] + s.before[:texts]
