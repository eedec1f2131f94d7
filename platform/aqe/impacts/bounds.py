"""What the candidates of a query share, and bounds around their gold scores: before the counting pass."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aqe.compiled import compiled
from aqe.impacts.lookup import Postings, ceiling

F32, F64 = np.float32, np.float64
#: The smallest sum that is one.
TINY = np.finfo(F32).tiny


class Texts(NamedTuple):
    """What one counting pass asks: T terms, L texts."""

    terms: npt.NDArray[np.int64]  # (T,)
    weights: npt.NDArray[np.float32]  # (T, L)
    scores: npt.NDArray[np.float32]  # (L,) gold scores, above 0
    golds: npt.NDArray[np.int64]  # (L,) number of the gold passage, or of the place where it would stand


class Bounds(NamedTuple):
    """How the fast pass adds up the texts, each of them scaled, and where it has to look closer."""

    shared: npt.NDArray[np.float32]  # (T,) weight that a term has in every text, at least
    own_starts: npt.NDArray[np.int64]  # (L + 1,) into own_terms, own_weights, own_most
    long_starts: npt.NDArray[np.int64]  # (L,) where in these a text's long lists of postings begin
    own_terms: npt.NDArray[np.int64]  # places in `terms`, shortest list first
    own_weights: npt.NDArray[np.float32]  # what a term weighs in a text beyond `shared`
    own_most: npt.NDArray[np.float32]  # what that can bring at most
    low: npt.NDArray[np.float32]  # (L,) a sum below is not above the gold score
    high: npt.NDArray[np.float32]  # (L,) a sum as high surely is
    bar: npt.NDArray[np.float32]  # (L,) a partial sum that cannot get there is left alone


@compiled
def _scales(weights: Any) -> Any:
    """A factor for each text, so that it has more in common with the others; its ranks stay as they are.

    The plain query is a part of its candidates, which say it more than once: it is made as heavy.
    """
    terms, texts = weights.shape
    scales = np.full(texts, np.inf, F32)
    for t in range(terms):
        heaviest = weights[t].max()
        for text in range(texts):
            if weights[t, text] > 0:
                scales[text] = min(scales[text], heaviest / weights[t, text])
    for text in range(texts):
        if np.isinf(scales[text]):
            scales[text] = 1
    return scales


@compiled
def slack(additions: Any, weight: Any) -> Any:
    """How far a sum of the fast pass may be from Lucene's score; `weight` is that of all its terms together.

    In units of 2**-24 times that weight, which no score exceeds: 4 for each addition (the product, the sum, a weight
    that was scaled, and one that was split into the shared part and the text's own); 1 for the rounded saturation; 4
    for Lucene's own term (two roundings in the denominator, the division, the difference); 1 for its last one, 2 for
    the bounds themselves, 2 to spare.
    """
    return (4 * additions + 10) * 2.0**-24 * weight


@compiled
def bounds(p: Postings, q: Texts, long: Any) -> Any:
    """Share out the weights of q and set bounds around the gold scores. Lists of more postings than `long` are long."""
    terms, texts = q.weights.shape
    scales = _scales(q.weights)
    shared, ceilings = np.empty(terms, F32), np.zeros(terms, F32)
    for t in range(terms):
        scaled = q.weights[t] * scales
        shared[t] = scaled.min()
        if scaled.max() > shared[t]:
            ceilings[t] = ceiling(p, q.terms[t])
    starts, long_starts = np.zeros(texts + 1, np.int64), np.zeros(texts, np.int64)
    low, high, bar = np.empty(texts, F32), np.empty(texts, F32), np.empty(texts, F32)
    own_terms, own_weights = np.empty(terms * texts, np.int64), np.empty(terms * texts, F32)
    own_most = np.empty(terms * texts, F32)
    sizes = np.empty(terms, np.int64)
    for t in range(terms):
        sizes[t] = np.int64(p.posting_starts[q.terms[t] + 1]) - np.int64(p.posting_starts[q.terms[t]])
    by_size = np.argsort(sizes)
    at = 0
    for text in range(texts):
        total, additions = F64(0), 0
        long_starts[text] = at
        for t in by_size:
            weight = q.weights[t, text] * scales[text]
            total += weight
            additions += shared[t] > 0
            if weight > shared[t]:
                own_terms[at], own_weights[at] = t, weight - shared[t]
                own_most[at] = own_weights[at] * ceilings[t]
                at += 1
                if sizes[t] <= long:
                    long_starts[text] = at
        starts[text + 1] = at
        additions += at - starts[text]
        score, off = F64(q.scores[text]) * F64(scales[text]), slack(additions, total)
        # A passage without any term has the sum 0 and the score 0: it is never before a gold score above that.
        low[text] = max(F32(score - off), F32(TINY))
        high[text] = F32(score + off)
        bar[text] = F32(low[text] - off)
    own = own_terms[:at], own_weights[:at], own_most[:at]
    return Bounds(shared, starts, long_starts, own[0], own[1], own[2], low, high, bar)
