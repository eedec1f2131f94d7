"""Intervals and tests over queries: paired bootstrap, sign-flip permutation, wins and losses.

The query is the unit that is drawn, and the seed of training where there were several. All systems see the same draws,
so that the interval of a difference belongs to the same resamples as those of its two values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Cells of a block of resamples (resamples x queries); 2 M float64 are 16 MB.
BLOCK = 2_000_000
#: Where a query is won or lost: place -> its last rank.
PLACES = {"first_10": 10.0, "11_to_100": 100.0, "beyond": np.inf}


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of `values` (queries, columns) over `resamples` draws of the queries with replacement.

    Shape (resamples, columns). A draw is a vector of counts, so a block of draws is one matrix product for all columns.
    """
    count = len(values)
    rng = np.random.default_rng(seed)
    out = np.empty((resamples, values.shape[1]))
    step = max(1, BLOCK // max(1, count))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, count, size=(rows, count)) + np.arange(rows)[:, None] * count
        counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        out[start : start + rows] = counts @ values / count
    return out


def seed_weights(seeds: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Share of each training seed in each of `resamples` draws of as many seeds with replacement: (resamples, seeds).

    The same for every system with so many: those that were trained with one seed belong together.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    rng = np.random.default_rng([seed, seeds])
    return rng.multinomial(seeds, [1 / seeds] * seeds, size=resamples) / seeds


def interval(value: float, resampled: NDArray[np.float64], confidence: float) -> Interval:
    """Percentile interval of `value` from its resampled values, shape (resamples,).

    It holds `value` always (rounding apart, it would anyway). Where all queries have the same value it has no width:
    a bootstrap cannot see what no query shows.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def sign_flip_p(differences: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Two-sided p-values of the paired randomisation test of mean difference 0; `differences` is (queries, columns).

    Under the hypothesis each query's two systems may be swapped, which flips its sign. The observed labelling counts
    as one of the draws, so the smallest value is 1 / (resamples + 1). Shape (columns,). Columns share the draws.
    """
    observed = np.abs(differences.sum(axis=0))
    # Flips that give the observed sum again in exact arithmetic must count as such in floating point.
    bar = observed - 1e-9 * np.abs(differences).sum(axis=0)
    # A query without any difference changes no sum: leaving it out saves its draws.
    differences = differences[np.any(differences != 0, axis=1)]
    count = len(differences)
    rng = np.random.default_rng(seed)
    extreme = np.zeros(differences.shape[1], dtype=np.int64)
    step = max(1, BLOCK // max(1, count))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        signs = rng.integers(0, 2, size=(rows, count), dtype=np.int8).astype(np.float64) * 2 - 1
        extreme += (np.abs(signs @ differences) >= bar).sum(axis=0)
    p: NDArray[np.float64] = (extreme + 1) / (resamples + 1)
    return p


def wins_losses_ties(shown: NDArray[np.float64], against: NDArray[np.float64]) -> dict[str, int]:
    """How many queries have a better (smaller), worse and equal gold rank than `against`.

    Both as `aqe.evaluate.measures.shown_ranks` has them: two that are not found are equal.
    """
    return {
        "wins": int((shown < against).sum()),
        "losses": int((shown > against).sum()),
        "ties": int((shown == against).sum()),
    }


def by_place(shown: NDArray[np.float64], against: NDArray[np.float64]) -> dict[str, dict[str, int]]:
    """`wins_losses_ties` of the queries of each of PLACES, which add up to those of all.

    A query belongs where the better of its two ranks lies: what neither list shows there, nobody sees change there; and
    it is the same place whichever of the two is named first. What neither finds is beyond.
    """
    better, low, out = np.minimum(shown, against), 0.0, {}
    for place, high in PLACES.items():
        inside = (better > low) & (better <= high)
        out[place] = wins_losses_ties(shown[inside], against[inside])
        low = high
    return out


def halvings(ranks: NDArray[np.integer[Any]], against: NDArray[np.integer[Any]]) -> float:
    """How often ranks are halved on average, from `against`: the mean of log2(against / ranks).

    Below 0 where they grow. Of gold ranks, so what is not found stands at 1 + the number of passages.
    """
    return float(np.mean(np.log2(against) - np.log2(ranks)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for being several (Holm 1979), under their names."""
    out: dict[str, float] = {}
    highest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p))
        out[name] = highest
    return {name: out[name] for name in p_values}
