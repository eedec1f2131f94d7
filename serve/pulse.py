"""When the engine last made a step, whoever waits for it and however its answers are handed on."""

import time


class Pulse:
    """Beaten by the engine, from whatever thread it works in."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> None:
        """The engine has made a step, or has got its first work."""
        self._last = time.monotonic()

    @property
    def still_s(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last
