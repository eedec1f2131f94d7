"""Texts as BM25 sees them: how often each term occurs in each."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt


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
    lengths = [len(terms) for terms in texts]
    rows = np.fromiter(map(index.__getitem__, chain.from_iterable(texts)), np.int64, sum(lengths))
    # Texts as rows first, so that equal ones are found as bytes.
    cells = np.repeat(np.arange(len(texts)), lengths) * len(index) + rows
    table = np.bincount(cells, minlength=len(texts) * len(index)).astype(np.float32).reshape(len(texts), len(index))
    different: dict[bytes, int] = {}
    places = [different.setdefault(row.tobytes(), len(different)) for row in table]
    chosen = [places.index(place) for place in range(len(different))]
    return TermCounts(tuple(index), np.ascontiguousarray(table[chosen].T)), places
