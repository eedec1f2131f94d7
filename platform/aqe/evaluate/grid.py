"""A coarse grid over settings that grows where its best point lies at an edge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

#: One setting of all that is tuned, in the order of the ladders.
Point: TypeAlias = tuple[float, ...]
#: Reciprocal rank of each query at each point, the queries in one order for all.
Values: TypeAlias = Mapping[Point, NDArray[np.float64]]


@dataclass(frozen=True)
class Ladder:
    """Values of one setting, ascending, and the part of them that is tried first: steps[first] to steps[last]."""

    name: str
    steps: tuple[float, ...]
    first: int
    last: int

    @property
    def tried(self) -> tuple[float, ...]:
        return self.steps[self.first : self.last + 1]

    def around(self, best: float) -> "Ladder":
        """One step longer where the best value lies at an end of what is tried, unless the ladder ends there."""
        place = self.steps.index(best)
        first = max(self.first - 1, 0) if place == self.first else self.first
        last = min(self.last + 1, len(self.steps) - 1) if place == self.last else self.last
        return Ladder(self.name, self.steps, first, last)


def climb(
    ladders: Sequence[Ladder], ask: Callable[[Sequence[Point]], Values], also: Sequence[Point] = ()
) -> dict[Point, NDArray[np.float64]]:
    """Values at all points that were tried: `also` and the grid of the ladders, wider until its best lies inside.

    `ask` is called with points that it was not asked before.
    """
    known: dict[Point, NDArray[np.float64]] = {}
    ladders = list(ladders)
    while True:
        grid = list(product(*(ladder.tried for ladder in ladders)))
        if new := [point for point in dict.fromkeys((*also, *grid)) if point not in known]:
            known |= ask(new)
        # Of equals the one that was asked first, so that a tie draws no grid to its edge.
        best = max((point for point in known if point in grid), key=lambda point: float(known[point].mean()))
        wider = [ladder.around(value) for ladder, value in zip(ladders, best, strict=True)]
        if wider == ladders:
            return known
        ladders = wider


def name(ladders: Sequence[Ladder], point: Point) -> str:
    """How people read a point: `k1 0.9, b 0.4`."""
    return ", ".join(f"{ladder.name} {value:g}" for ladder, value in zip(ladders, point, strict=True))
