"""Bodies of requests: read whole before anything else is done, bounded in length, in time and in number.

A request whose body is still coming is no work yet: clients that send half of it take nobody's place.
"""

import asyncio
from collections import Counter
from typing import Any

from aqe.config.serve import LimitsConfig
from serve.refused import Refused, unavailable


class Receiving:
    """Reads the bodies of all requests of a replica."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._coming: Counter[str] = Counter()

    async def whole(self, caller: str, headers: dict[bytes, bytes], receive: Any) -> Any:
        """An ASGI `receive` with a request's whole body. Raises Refused: too long, too slow, or too many at once."""
        most, seconds = self._limits.max_body_bytes, self._limits.body_timeout_s
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > most:
            raise _too_large(most)
        if self._coming[caller] >= self._limits.max_in_flight:
            raise unavailable("Too many requests of yours are being received. Send the request again.")
        self._coming[caller] += 1
        try:
            async with asyncio.timeout(seconds):
                body = await _read(receive, most)
        except TimeoutError:
            # The connection is of no more use: the rest of the body would be taken for the next request.
            message = f"The request's body did not come within {seconds:g} seconds."
            raise Refused(408, "timeout", message, connection="close") from None
        finally:
            self._coming[caller] -= 1
            # Only callers that send are kept.
            self._coming = +self._coming
        return _Again(body, receive)


async def _read(receive: Any, most: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "invalid_request_error", "The request has no end.")
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        more = message.get("more_body", False)
    return bytes(body)


def _too_large(most: int) -> Refused:
    return Refused(413, "request_too_large", f"The request's body is longer than {most} bytes.")


class _Again:
    """A body that was read, for who reads it now; then what the network says."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Any:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
