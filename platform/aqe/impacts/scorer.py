"""One shard of the impact index as a scorer: gold scores first, then how many of its passages stand before them."""

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aqe.compiled import quick
from aqe.impacts import kernel, lookup
from aqe.impacts.bm25 import F32, Collection, idf, inverse_norms, saturation
from aqe.impacts.bounds import Texts, slack
from aqe.impacts.terms import TermCounts
from aqe.index.shard import Shard, text_column
from aqe.ranker import Hit

#: Texts of one counting pass, at most: all the candidates of a query.
TEXTS = 128
#: Terms whose place in the vocabulary is remembered, about.
TERMS = 1 << 16


class Scorer(Protocol):
    """A part of the corpus, here or on another machine. Counts of the parts add up to exact ranks."""

    def scores(self, asked: TermCounts, docids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Lucene's score of each passage for each text, (L, docids); NaN where the passage is not in this part."""
        ...

    def counts(self, asked: TermCounts, golds: Sequence[tuple[float, str]]) -> npt.NDArray[np.int64]:
        """Passages of this part that stand before (score, docid), one of them a text: (L,).

        Before a score of 0 stand all of them: what shares no term with a text is not found.
        """
        ...

    def search(self, asked: TermCounts, k: int) -> list[Hit]:
        """The k best passages of this part for the first text, by score descending, then docid."""
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
        self._postings = lookup.Postings(
            *(a.posting_starts, a.run_starts, a.run_blocks, a.run_sizes, a.docs, a.codes, a.code_tf, a.code_length),
            *(a.rare_terms, a.rare_docs, a.rare_tf, a.rare_length),
            table,
            saturation(a.rare_tf, a.rare_length, norms),
            norms,
            np.zeros(len(a.df), F32),
        )
        # Vocabularies reach millions: they stay on the mapped pages, and only what is asked for is remembered.
        self._terms: dict[str, int] = {}
        self._local = threading.local()

    @property
    def num_passages(self) -> int:
        """Passages in this shard."""
        return self.shard.num_passages

    def _numbers(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Number of each term, -1 when no passage of this shard has it."""
        if len(self._terms) > TERMS:
            # Other threads go on with the one they have.
            self._terms = {}
        known = self._terms
        unknown = [word for word in words if word not in known]
        if unknown:
            a = self.shard.arrays
            wanted, starts = text_column(word.encode() for word in unknown)
            known.update(zip(unknown, find_bytes(a.term_bytes, a.term_starts, wanted, starts).tolist(), strict=True))
        return np.fromiter(map(known.__getitem__, words), np.int64, len(words))

    def _place(self, docid: str) -> int:
        """Number of a passage, or of the first one after the place where it would stand."""
        a = self.shard.arrays
        return int(lower_bound_bytes(a.docid_bytes, a.docid_starts, np.frombuffer(docid.encode(), np.uint8)))

    def _has(self, docid: str, place: int) -> bool:
        return place < self.num_passages and self.shard.docid(place) == docid

    def weights(self, asked: TermCounts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Terms of all the texts that this shard has, (T,) ascending, and the weight of each in each text, (T, L)."""
        known = getattr(self._local, "known", None)
        # Scores are asked first, then counts of the same texts.
        if known is None or known[0] is not asked:
            terms = self._numbers(asked.words)
            # In their own order: sums must not depend on that of the words.
            order = np.argsort(terms)[np.count_nonzero(terms < 0) :]
            terms = terms[order]
            known = self._local.known = asked, terms, asked.counts[order] * self._idf[terms][:, None]
        return known[1], known[2]

    def scores(self, asked: TermCounts, docids: Sequence[str]) -> npt.NDArray[np.float32]:
        places = [self._place(docid) for docid in docids]
        here = [i for i, docid in enumerate(docids) if self._has(docid, places[i])]
        scores = np.full((asked.counts.shape[1], len(docids)), np.nan, F32)
        if here:
            out = np.zeros((len(scores), len(here)), F32)
            terms, weights = self.weights(asked)
            lookup.score(self._postings, terms, weights, np.array([places[i] for i in here], np.int64), out)
            scores[:, here] = out
        return scores

    def counts(self, asked: TermCounts, golds: Sequence[tuple[float, str]]) -> npt.NDArray[np.int64]:
        terms, weights = self.weights(asked)
        places = {docid: self._place(docid) for docid in {docid for _, docid in golds}}
        scores = np.array([score for score, _ in golds], F32)
        before = np.array([places[docid] for _, docid in golds], np.int64)
        before_gold = np.full(len(golds), self.num_passages, np.int64)
        found = np.flatnonzero(scores > 0)
        for start in range(0, len(found), TEXTS):
            part = found[start : start + TEXTS]
            texts = Texts(terms, np.ascontiguousarray(weights[:, part]), scores[part], before[part])
            before_gold[part] = kernel.count(self._postings, texts, self.num_passages, self._scratch(len(terms)))
        return before_gold

    def _scratch(self, terms: int) -> kernel.Scratch:
        scratch: kernel.Scratch | None = getattr(self._local, "scratch", None)
        if scratch is None or len(scratch.run) < terms:
            scratch = self._local.scratch = kernel.make_scratch(max(4096, 2 * terms), TEXTS)
        return scratch

    def search(self, asked: TermCounts, k: int) -> list[Hit]:
        terms, weights = self.weights(asked)
        if not len(terms):
            return []
        near = np.zeros(self.num_passages, F32)
        lookup.accumulate(self._postings, terms, weights[:, 0], near)
        matched = np.flatnonzero(near)
        if len(matched) > k:
            cut = np.partition(near[matched], len(matched) - k)[len(matched) - k]
            matched = matched[near[matched] >= cut - 2 * slack(len(terms), float(weights.sum()))]
        exact = np.zeros((1, len(matched)), F32)
        lookup.score(self._postings, terms, weights, matched, exact)
        best = np.lexsort((matched, -exact[0]))[:k]
        return [Hit(self.shard.docid(int(matched[i])), float(exact[0, i])) for i in best]


@quick
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


@quick
def find_bytes(data: Any, starts: Any, wanted: Any, wanted_starts: Any) -> Any:
    """Place of each of the wanted byte strings among those of `data`, ascending; -1 where it is not one of them."""
    places = np.full(len(wanted_starts) - 1, -1, np.int64)
    for i in range(len(places)):
        one = wanted[wanted_starts[i] : wanted_starts[i + 1]]
        at = lower_bound_bytes(data, starts, one)
        if at < len(starts) - 1 and np.array_equal(data[starts[at] : starts[at + 1]], one):
            places[i] = at
    return places
