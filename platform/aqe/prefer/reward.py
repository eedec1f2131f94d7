"""What a candidate is worth: a larger value is better, and two candidates are as far apart as their values."""

import math
from collections.abc import Mapping
from typing import Protocol


class Reward(Protocol):
    """Value of a search with the best relevant passage at `rank` and this nDCG (NaN where none was asked for).

    Where it is not `found`, its rank is 1 + the number of passages: such searches are all worth the same, and no other
    is worth less.
    """

    def __call__(self, rank: int, found: bool, ndcg: float) -> float: ...


def by_rank(rank: int, found: bool, ndcg: float) -> float:
    """Halving the rank is worth 1, wherever it happens."""
    return -math.log2(rank)


def by_reciprocal_rank(rank: int, found: bool, ndcg: float) -> float:
    """What MRR averages: only the first few ranks count."""
    return 1 / rank if found else 0.0


def by_ndcg(rank: int, found: bool, ndcg: float) -> float:
    """All relevant passages count, down to `rank.ndcg_at`."""
    return ndcg


REWARDS: Mapping[str, Reward] = {"rank": by_rank, "reciprocal_rank": by_reciprocal_rank, "ndcg": by_ndcg}
