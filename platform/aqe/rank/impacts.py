"""One shard of the impact index as a scorer: gold scores first, then how many of its passages stand before them."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aqe.compiled import compiled
from aqe.index.shard import Shard
from aqe.rank import kernel
from aqe.rank.bm25 import F32, Collection, idf, inverse_norms, saturation
from aqe.rank.ranker import Hit

#: A text as its terms, each with how often it occurs: all that BM25 knows of it.
Bag = frozenset[tuple[str, int]]
#: Widths of the counting pass, widest first.
LANES = (16, 8, 4)


class Scorer(Protocol):
    """A part of the corpus, here or on another machine. Counts of the parts add up to exact ranks."""

    def scores(self, bags: Sequence[Bag], docids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Lucene's score of each passage for each text, (bags, docids); NaN where the passage is not in this part."""
        ...

    def counts(self, bags: Sequence[Bag], golds: Sequence[tuple[float, str]]) -> npt.NDArray[np.int64]:
        """Passages of this part that stand before (score, docid), one of them a bag: (bags,)."""
        ...

    def search(self, bag: Bag, k: int) -> list[Hit]:
        """The k best passages of this part, by score descending, then docid."""
        ...


class ShardScorer:
    """A `Scorer` on an open shard. Several threads may use it at once: the loops run without Python's lock."""

    def __init__(self, shard: Shard, k1: float, b: float) -> None:
        a = shard.arrays
        self.shard = shard
        collection = Collection(shard.scored_passages, shard.total_terms, k1, b)
        self._idf = idf(collection, a.df)
        norms = inverse_norms(collection)
        table = np.zeros(256, F32)
        table[: len(a.code_tf)] = saturation(a.code_tf, a.code_length, norms)
        self._postings = kernel.Postings(
            *(a.posting_starts, a.run_starts, a.run_blocks, a.run_sizes, a.docs, a.codes, a.code_tf, a.code_length),
            *(a.rare_terms, a.rare_docs, a.rare_tf, a.rare_length),
            table,
            saturation(a.rare_tf, a.rare_length, norms),
            norms,
        )
        # Vocabularies reach millions: they stay on the mapped pages, and only what is asked for is remembered.
        self.term = lru_cache(maxsize=1 << 16)(self._find_term)
        self._local = threading.local()

    @property
    def num_passages(self) -> int:
        """Passages in this shard."""
        return self.shard.num_passages

    def _find_term(self, term: str) -> int:
        """Number of a term, -1 when no passage of this shard has it."""
        a, wanted = self.shard.arrays, np.frombuffer(term.encode(), np.uint8)
        at = int(lower_bound_bytes(a.term_bytes, a.term_starts, wanted))
        found = at < len(a.df) and a.term_bytes[a.term_starts[at] : a.term_starts[at + 1]].tobytes() == term.encode()
        return at if found else -1

    def _place(self, docid: str) -> int:
        """Number of a passage, or of the first one after the place where it would stand."""
        a = self.shard.arrays
        return int(lower_bound_bytes(a.docid_bytes, a.docid_starts, np.frombuffer(docid.encode(), np.uint8)))

    def _has(self, docid: str, place: int) -> bool:
        return place < self.num_passages and self.shard.docid(place) == docid

    def _weights(self, bags: Sequence[Bag], lanes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Terms of all the bags that this shard has, (T,), and the weight of each in each bag, (T, lanes)."""
        found = [(t, lane, n) for lane, bag in enumerate(bags) for word, n in bag if (t := self.term(word)) >= 0]
        table = np.array(found, np.int64).reshape(-1, 3)
        terms, rows = np.unique(table[:, 0], return_inverse=True)
        boosts = np.zeros((len(terms), lanes), F32)
        boosts[rows, table[:, 1]] = table[:, 2]
        return terms, boosts * self._idf[terms][:, None]

    def scores(self, bags: Sequence[Bag], docids: Sequence[str]) -> npt.NDArray[np.float32]:
        places = [self._place(docid) for docid in docids]
        here = [i for i, docid in enumerate(docids) if self._has(docid, places[i])]
        found = np.full((len(bags), len(docids)), np.nan, F32)
        if here:
            out = np.zeros((len(bags), len(here)), F32)
            terms, weights = self._weights(bags, len(bags))
            kernel.score(self._postings, terms, weights, np.array([places[i] for i in here], np.int64), out)
            found[:, here] = out
        return found

    def counts(self, bags: Sequence[Bag], golds: Sequence[tuple[float, str]]) -> npt.NDArray[np.int64]:
        found = np.zeros(len(bags), np.int64)
        start = 0
        while start < len(bags):
            left = len(bags) - start
            # The widest that is filled; what is left over goes into the narrowest that holds it.
            lanes = next((n for n in LANES if n <= left), LANES[-1])
            if lanes < left < LANES[0]:
                lanes = min(n for n in LANES if n >= left)
            end = min(start + lanes, len(bags))
            found[start:end] = self._count(bags[start:end], golds[start:end], lanes)
            start = end
        return found

    def _count(self, bags: Sequence[Bag], golds: Sequence[tuple[float, str]], lanes: int) -> npt.NDArray[np.int64]:
        terms, weights = self._weights(bags, lanes)
        scores, places = np.full(lanes, np.inf, F32), np.zeros(lanes, np.int64)
        scores[: len(golds)] = [score for score, _ in golds]
        places[: len(golds)] = [self._place(docid) for _, docid in golds]
        slack = _slack(weights)
        low, high = scores - slack, scores + slack
        # A passage without any term has the sum 0 and the score 0: it is never before a gold score above that.
        low = np.maximum(low, np.finfo(F32).tiny).astype(F32)
        unmatched = scores == 0
        high[unmatched] = 0
        zero_gold = int(places[unmatched][0]) if unmatched.any() else -1
        scratch = self._scratch(len(terms))
        asked = kernel.Lanes(terms, weights, scores, low, high, places, zero_gold)
        kernel.count(self._postings, asked, self.num_passages, scratch, (0,) * lanes)
        above, before = scratch.above[:lanes], scratch.before[:lanes]
        # Those that match nothing and stand before the gold passage: all before it but those that match.
        before = np.where(unmatched, places - before, before)
        counted: npt.NDArray[np.int64] = (above + before)[: len(bags)]
        return counted

    def _scratch(self, terms: int) -> kernel.Scratch:
        scratch: kernel.Scratch | None = getattr(self._local, "scratch", None)
        if scratch is None or len(scratch.run) < terms:
            scratch = self._local.scratch = kernel.make_scratch(max(4096, 2 * terms), LANES[0])
        return scratch

    def search(self, bag: Bag, k: int) -> list[Hit]:
        terms, weights = self._weights([bag], 1)
        if not len(terms):
            return []
        near = np.zeros(self.num_passages, F32)
        kernel.accumulate(self._postings, terms, weights[:, 0], near)
        matched = np.flatnonzero(near)
        if len(matched) > k:
            cut = np.partition(near[matched], len(matched) - k)[len(matched) - k]
            matched = matched[near[matched] >= cut - 2 * _slack(weights)[0]]
        exact = np.zeros((1, len(matched)), F32)
        kernel.score(self._postings, terms, weights, matched, exact)
        best = np.lexsort((matched, -exact[0]))[:k]
        return [Hit(self.shard.docid(int(matched[i])), float(exact[0, i])) for i in best]


def _slack(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How far a float32 sum of the fast pass may be from Lucene's score, for each lane of weights (T, lanes).

    In units of 2**-24 times the sum of a lane's weights, which no score exceeds: T roundings of a multiply-add, or 2 T
    where the machine has none; 1 for the rounded saturation; 4 for Lucene's own term (two roundings in the denominator,
    the division, the difference); 1 for its last one, and 2 to spare.
    """
    terms = (weights > 0).sum(axis=0)
    slack: npt.NDArray[np.float32] = ((2 * terms + 8) * 2.0**-24 * weights.sum(axis=0, dtype=np.float64)).astype(F32)
    return slack


@compiled
def lower_bound_bytes(data: Any, starts: Any, wanted: Any) -> Any:
    """First of the byte strings data[starts[i]:starts[i + 1]], ascending, that is not below `wanted`."""
    begin, end = 0, len(starts) - 1
    while begin < end:
        middle = (begin + end) >> 1
        at, stop = np.int64(starts[middle]), np.int64(starts[middle + 1])
        below = False
        for i in range(len(wanted)):
            if at + i == stop or data[at + i] != wanted[i]:
                below = at + i == stop or data[at + i] < wanted[i]
                break
        if below:
            begin = middle + 1
        else:
            end = middle
    return begin
