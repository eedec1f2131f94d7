"""Texts as BM25 sees them: how often each term occurs in each."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from aqe.compiled import quick


@dataclass(frozen=True, eq=False)
class TermCounts:
    """W terms of L texts."""

    words: tuple[str, ...]
    counts: npt.NDArray[np.float32]  # (W, L)


def count_terms(texts: Sequence[Sequence[str]]) -> tuple[TermCounts, list[int]]:
    """Analyzed texts -> counts of the different ones, and the place of each text among these.

    Two candidates that say the same in another order are one text for BM25.
    """
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__
    lengths = np.array([len(terms) for terms in texts])
    rows = np.fromiter(map(index.__getitem__, chain.from_iterable(texts)), np.int64, lengths.sum())
    counts, places = tabulate(rows, lengths, len(index))
    return TermCounts(tuple(index), counts), places.tolist()


@quick
def _same(one: Any, other: Any) -> Any:
    """Whether two arrays of one length are equal; most differ within a few words."""
    at = 0
    while at < len(one) and one[at] == other[at]:
        at += 1
    return at == len(one)


@quick
def tabulate(rows: Any, lengths: Any, words: Any) -> Any:
    """Numbers of words, text after text -> counts (W, L) of the L different texts, and each text's place among them."""
    table, places = np.zeros((len(lengths), words), np.float32), np.empty(len(lengths), np.int64)
    different = at = 0
    for text in range(len(lengths)):
        new = table[different]
        for i in range(at, at + lengths[text]):
            new[rows[i]] += 1
        at += lengths[text]
        place = 0
        while place < different and not _same(table[place], new):
            place += 1
        places[text] = place
        if place == different:
            different += 1
        else:
            new[:] = 0
    return np.ascontiguousarray(table[:different].T), places
