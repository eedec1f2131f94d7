"""A request that is not answered as it was asked: its status, its kind, and what the client is told."""

from serve.engine import RETRY_AFTER_S


class Refused(Exception):
    """An answer of 400 or more. `headers` go with it."""

    def __init__(self, code: int, kind: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.kind, self.message, self.headers = code, kind, message, headers


def unavailable(message: str) -> Refused:
    """503: it can be sent again in a moment."""
    return Refused(503, "overloaded", message, **{"retry-after": str(RETRY_AFTER_S)})
