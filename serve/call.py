"""Whose request it is, and when it came."""

import time
from dataclasses import dataclass, field

from fastapi import Request

#: Where the guard leaves the caller's name in a request's ASGI scope.
CALLER = "aqe.caller"


@dataclass(frozen=True)
class Call:
    """One request: by whom (the name of a key, or an address), and since when (time.perf_counter)."""

    caller: str = ""
    started: float = field(default_factory=time.perf_counter)

    @property
    def milliseconds(self) -> float:
        """Since it came."""
        return round((time.perf_counter() - self.started) * 1000, 3)


# A coroutine, because FastAPI calls a plain function in a thread.
async def call_of(request: Request) -> Call:
    """The call that a request is, for routes."""
    return Call(request.scope.get(CALLER, ""))
