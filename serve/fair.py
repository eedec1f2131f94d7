"""The engine's places, shared between keys: start-time fair queueing in front of the engine.

The work of each key has a clock of its own, which goes on by what its sequences cost; the key whose clock is behind
comes next. A key that was away starts with the others' time: nobody saves up, and nobody is starved. (Goyal et al.,
1996; for language models: Sheng et al., Fairness in Serving Large Language Models, 2024.)

Sequences cannot be interrupted, and each slows down all that are decoded with it. So one key alone may fill the engine,
but only a share of it while others ask, and some places are kept for the first sequence of whoever comes next.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

#: Seconds for which a key still counts as asking: a reader's pause must not let another key fill the engine.
LINGER_S = 10.0


def spare_places(places: int) -> int:
    """Places beyond those that one key may fill: for the first sequence of a key that has none in work."""
    return max(1, places // 8)


@dataclass(eq=False)
class Turn:
    """A sequence's turn."""

    cost: float
    """What it may take."""
    used: float = 0
    """What it took; the rest is given back to its key."""
    number: int = 0
    """So many sequences of its key were in work when it began."""


@dataclass(eq=False)
class _Key:
    clock: float = 0.0
    running: int = 0
    waiting: deque[tuple[Turn, asyncio.Future[None]]] = field(default_factory=deque)
    left: float = float("-inf")
    """When it last had work."""

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)


class FairQueue:
    """Who is next. `beside` is the share of the places that a key may fill while others ask."""

    def __init__(self, places: int, beside: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._room = places + spare_places(places)
        self._beside = max(1, int(places * beside))
        self._clock = clock
        self._keys: dict[str, _Key] = {}
        self._now = 0.0
        """The clock of the key that was served last."""
        self.running = 0

    @asynccontextmanager
    async def turn(self, caller: str, cost: float) -> AsyncIterator[Turn]:
        """Wait for a place, and leave it at the end."""
        key = self._keys.setdefault(caller, _Key())
        if not key.busy:
            key.clock = max(key.clock, self._now)
        turn = Turn(cost)
        await self._wait(key, turn)
        try:
            yield turn
        finally:
            self._leave(key, turn)

    async def _wait(self, key: _Key, turn: Turn) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        key.waiting.append((turn, place))
        self._next()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                key.waiting.remove((turn, place))
                key.left = self._clock()
            else:
                # Its turn had just come.
                self._leave(key, turn)
            raise

    def _next(self) -> None:
        """Give away the places that are free."""
        while able := [key for key in self._keys.values() if key.waiting and self._may(key)]:
            key = min(able, key=lambda key: key.clock)
            turn, place = key.waiting.popleft()
            self._now = key.clock
            key.clock += turn.cost
            turn.number = key.running
            key.running += 1
            self.running += 1
            place.set_result(None)

    def _may(self, key: _Key) -> bool:
        if not key.running:
            return self.running < self._room
        return self.running < self._places and key.running < (self._places if self._alone(key) else self._beside)

    def _alone(self, key: _Key) -> bool:
        since = self._clock() - LINGER_S
        return not any(other.busy or other.left > since for other in self._keys.values() if other is not key)

    def _leave(self, key: _Key, turn: Turn) -> None:
        key.running -= 1
        self.running -= 1
        key.left = self._clock()
        key.clock -= max(0.0, turn.cost - turn.used)
        self._next()
