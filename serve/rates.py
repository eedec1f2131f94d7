"""How much one caller may ask for in a minute: requests, or the tokens that they may make."""

import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from serve.refused import Refused


class Rate:
    """A limit for each caller; None is no limit."""

    def __init__(self, per_minute: int | None, what: str) -> None:
        self._item = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._what = what
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def take(self, caller: str, number: int = 1) -> None:
        """Count so many of a caller's. Raises Refused (429) where that is more than its limit, and counts none then."""
        if self._item is None or await self._limiter.hit(self._item, caller, cost=number):
            return
        window = await self._limiter.get_window_stats(self._item, caller)
        # The limiter knows when the first one is free again; many take longer.
        missing = 60 * (number - window.remaining) / self._item.amount
        wait = min(60, max(1, round(window.reset_time - time.time()), math.ceil(missing)))
        message = f"More than {self._item.amount} {self._what} in a minute. Wait {wait} seconds."
        raise Refused(429, "rate_limit_exceeded", message, **{"retry-after": str(wait)})
