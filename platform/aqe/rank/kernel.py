"""The inner loops of exact gold ranks, compiled by numba.

The candidates of one query share the query's words: these are added up once, and every candidate starts from that sum,
adds its own words and is compared with its gold score. All of it block after block of passages, so that the sums stay
near the core. Words with long lists of postings weigh little: they are looked up in the few passages that the other
words, with all that the long lists could bring, may have lifted above the gold score (after MaxScore, Turtle & Flood
1995).

The sums of this pass are float32 and near Lucene's; `low` and `high` stand around the gold score as far off as the
rounding can reach. What lies between is scored again in Lucene's own arithmetic, so every count is exact.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aqe.compiled import compiled
from aqe.index.shard import BLOCK, ESCAPE
from aqe.rank.lookup import Postings, code_in, in_run, lower_bound, rare_saturation, term_score
from aqe.rank.plan import Plan, Texts, plan
from aqe.rank.vectors import ALIGN, WIDE, add, at_least, clear, compare, copy, highest, prefetch

F32, F64 = np.float32, np.float64
#: So many passages of a block are looked up one by one; for more, adding all postings costs less.
FEW = 32
#: A list of postings is long when it has more than one in so many passages.
LONG = 25


class Scratch(NamedTuple):
    """What a thread's passes write to."""

    base: npt.NDArray[np.float32]  # (BLOCK,) sums of what all texts share
    acc: npt.NDArray[np.float32]  # (BLOCK,) sums of one text
    counts: npt.NDArray[np.int64]  # (2,) sums of a block that are >= high, and >= low
    added: npt.NDArray[np.int64]  # (1,) postings of all passes, for the curious
    rows: npt.NDArray[np.int64]  # (FEW,) places in the block
    sums: npt.NDArray[np.float32]  # (FEW,) of these
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
        *(_aligned(BLOCK), _aligned(BLOCK), np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros(FEW, np.int64)),
        np.zeros(FEW, F32),
        *(np.zeros(texts, np.int64) for _ in range(2)),
        *(np.zeros(terms, np.int64) for _ in range(6)),
    )


def _aligned(size: int) -> npt.NDArray[np.float32]:
    """Zeros that can be loaded in whole vectors."""
    raw = np.zeros(size + ALIGN // 4, F32)
    start = -raw.ctypes.data // 4 % (ALIGN // 4)
    return raw[start : start + size]


@compiled
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


@compiled
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


@compiled
def _add_rare(p: Postings, t: Any, weight: Any, first: Any, s: Any, acc: Any) -> Any:
    """The rare postings of a term in the block that starts at passage `first`."""
    for i in range(s.rare[t], s.rare_end[t]):
        acc[p.rare_docs[i] - first] += weight * p.rare_saturation[i]


@compiled
def _matched_before(q: Texts, text: Any, first: Any, size: Any, s: Any) -> Any:
    """For a gold passage that matches nothing, `before` holds those that do match and stand before it."""
    for row in range(min(size, q.golds[text] - first)):
        s.before[text] += s.acc[row] > 0


@compiled
def _near(p: Postings, q: Texts, m: Plan, text: Any, first: Any, size: Any, s: Any) -> Any:
    """Count what the comparison left open: it has forgotten the sums, so they are made again."""
    for k in range(m.own_starts[text], m.own_starts[text + 1]):
        t = m.own_terms[k]
        add(s.acc, p.docs, p.codes, s.begin[t], s.end[t], p.code_saturation, m.own_weights[k])
        _add_rare(p, t, m.own_weights[k], first, s, s.acc)
    for v in range((size + WIDE - 1) // WIDE):
        mask = at_least(s.acc, v * WIDE, m.low[text]) & ~at_least(s.acc, v * WIDE, m.high[text])
        if mask:
            for i in range(WIDE):
                if mask >> i & 1:
                    _exactly(p, q, first + v * WIDE + i, text, s)
    copy(s.acc, s.base, BLOCK)


@compiled
def _few(acc: Any, reach: Any, rows: Any, sums: Any, vectors: Any) -> Any:
    """Places and values of the sums that are >= reach; returns how many, or -1 when they are more than FEW."""
    found = 0
    for v in range(vectors):
        mask = at_least(acc, v * WIDE, reach)
        if mask:
            for i in range(v * WIDE, (v + 1) * WIDE):
                if acc[i] >= reach:
                    if found == FEW:
                        return -1
                    rows[found], sums[found] = i, acc[i]
                    found += 1
    return found


@compiled
def _few_touched(
    docs: Any,
    begin: Any,
    end: Any,
    terms: Any,
    k: Any,
    stop: Any,
    acc: Any,
    base: Any,
    reach: Any,
    rows: Any,
    sums: Any,
) -> Any:
    """The same where `base` does not reach as far: only passages with a posting can, and each is put back at once."""
    found = 0
    for at in range(k, stop):
        for i in range(np.uint64(begin[terms[at]]), np.uint64(end[terms[at]])):
            value = acc[docs[i]]
            acc[docs[i]] = base[docs[i]]
            if value >= reach:
                if found == FEW:
                    return -1
                rows[found], sums[found] = docs[i], value
                found += 1
    return found


@compiled
def _put_back(docs: Any, begin: Any, end: Any, terms: Any, k: Any, stop: Any, acc: Any, base: Any) -> Any:
    """Take the postings of some terms out of `acc` again."""
    for at in range(k, stop):
        for i in range(np.uint64(begin[terms[at]]), np.uint64(end[terms[at]])):
            acc[docs[i]] = base[docs[i]]


@compiled
def _look_up(p: Postings, q: Texts, m: Plan, text: Any, first: Any, found: Any, far: Any, s: Any) -> Any:
    """Count the passages found in a block, each looked up in the long lists as long as it can reach the gold score.

    `far`: what these lists can bring together.
    """
    for i in range(found):
        total, left = F64(s.sums[i]), F64(far)
        for k in range(m.long_starts[text], m.own_starts[text + 1]):
            if total + left < m.bar[text]:
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


@compiled
def _start(p: Postings, q: Texts, s: Any) -> Any:
    """Before the first block."""
    s.above[: len(q.scores)] = 0
    s.before[: len(q.scores)] = 0
    for t in range(len(q.terms)):
        s.run[t] = p.run_starts[q.terms[t]]
        s.end[t] = s.next_end[t] = p.posting_starts[q.terms[t]]
        s.rare_end[t] = lower_bound(p.rare_terms, 0, len(p.rare_terms), q.terms[t])


@compiled
def count(p: Postings, q: Texts, num_docs: Any, s: Any) -> Any:
    """For each text, how many passages stand before its gold passage: (L,)."""
    terms, texts = q.weights.shape
    m = plan(p, q, num_docs // LONG)
    _start(p, q, s)
    _open_block(p, q.terms, -1, s)
    for first in range(0, num_docs, BLOCK):
        size = min(BLOCK, num_docs - first)
        _open_block(p, q.terms, first // BLOCK, s)
        clear(s.base, BLOCK)
        for t in range(terms):
            if m.shared[t] > 0:
                add(s.base, p.docs, p.codes, s.begin[t], s.end[t], p.code_saturation, m.shared[t])
                s.added[0] += s.end[t] - s.begin[t]
                if s.rare[t] < s.rare_end[t]:
                    _add_rare(p, t, m.shared[t], first, s, s.base)
                prefetch(p.docs, s.end[t], s.next_end[t])
                prefetch(p.codes, s.end[t], s.next_end[t])
        copy(s.acc, s.base, BLOCK)
        # Behind the last passage all sums are 0: below every bound.
        vectors = (size + WIDE - 1) // WIDE
        top = highest(s.base, vectors)
        for text in range(texts):
            begin, middle, end = m.own_starts[text], m.long_starts[text], m.own_starts[text + 1]
            # What the long lists can bring, and the short ones, of the words that are in this block.
            far = near = F32(0)
            for k in range(begin, end):
                if s.begin[m.own_terms[k]] < s.end[m.own_terms[k]]:
                    if k < middle:
                        near += m.own_most[k]
                    else:
                        far += m.own_most[k]
            if top + near + far < m.bar[text]:
                continue
            for k in range(begin, middle):
                t = m.own_terms[k]
                add(s.acc, p.docs, p.codes, s.begin[t], s.end[t], p.code_saturation, m.own_weights[k])
                s.added[0] += s.end[t] - s.begin[t]
                if s.rare[t] < s.rare_end[t]:
                    _add_rare(p, t, m.own_weights[k], first, s, s.acc)
                prefetch(p.docs, s.end[t], s.next_end[t])
                prefetch(p.codes, s.end[t], s.next_end[t])
            if q.scores[text] > 0:
                reach = m.bar[text] - far
                if top < reach:
                    found = _few_touched(
                        *(p.docs, s.begin, s.end, m.own_terms, begin, middle, s.acc, s.base, reach, s.rows, s.sums)
                    )
                else:
                    found = _few(s.acc, reach, s.rows, s.sums, vectors)
                if found < 0 or top >= reach:
                    _put_back(p.docs, s.begin, s.end, m.own_terms, begin, middle, s.acc, s.base)
                if found > 0:
                    _look_up(p, q, m, text, first, found, far, s)
                if found >= 0:
                    continue
                middle = begin
            for k in range(middle, end):
                t = m.own_terms[k]
                add(s.acc, p.docs, p.codes, s.begin[t], s.end[t], p.code_saturation, m.own_weights[k])
                s.added[0] += s.end[t] - s.begin[t]
                if s.rare[t] < s.rare_end[t]:
                    _add_rare(p, t, m.own_weights[k], first, s, s.acc)
            if q.scores[text] == 0:
                _matched_before(q, text, first, size, s)
            s.counts[:] = 0
            compare(s.acc, s.base, m.low[text], m.high[text], s.counts, vectors)
            s.above[text] += s.counts[0]
            if s.counts[0] != s.counts[1]:
                _near(p, q, m, text, first, size, s)
    for text in range(texts):
        if q.scores[text] == 0:
            # Those that match nothing and stand before the gold passage: all before it but those that match.
            s.before[text] = q.golds[text] - s.before[text]
    return s.above[:texts] + s.before[:texts]
