"""What stands between the network and the service: keys, limits, time, and the headers of a careful answer.

Plain ASGI, because a framework's middleware of its own costs a task and a copy for each request.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from typing import Any

from aqe.config.serve import LimitsConfig
from aqe.observe import metrics
from serve.call import CALLER
from serve.keys import Keys
from serve.rates import Rate
from serve.receiving import Receiving
from serve.refused import Refused, unavailable
from serve.schemas import error

log = logging.getLogger("ray.serve")

#: Routes that anybody may see: they reveal nothing and start no work.
OPEN = ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/favicon.ico")
PAGE = "/page/"
#: Of the page and of answers alike. The OpenAPI page loads its viewer from elsewhere; see `app.docs`.
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # A page of one version must not meet the script of another.
    "cache-control": "no-cache",
}
_LOOPBACK = ("127.0.0.1", "::1")


class Guard:
    """Wraps an ASGI application."""

    def __init__(self, app: Any, keys: Keys, limits: LimitsConfig) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._rate = Rate(limits.requests_per_minute, "requests")
        self._receiving = Receiving(limits)
        self._in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        answer = _Answer(send)
        open_route = scope["path"] in OPEN or scope["path"].startswith(PAGE)
        try:
            if open_route:
                await self._app(scope, receive, answer.send)
            else:
                await self._guarded(scope, receive, answer)
        except Refused as refused:
            await answer.refuse(refused)
        except Exception:
            # The application has answered already.
            log.exception("request failed")
        finally:
            route = getattr(scope.get("route"), "path", "other")
            metrics.count(metrics.REQUESTS, 1, route=route, code=str(answer.code))
            if not open_route:
                metrics.seconds(metrics.LATENCY, time.perf_counter() - started, route=route)

    async def _guarded(self, scope: Any, receive: Any, answer: "_Answer") -> None:
        headers = dict(scope["headers"])
        scope[CALLER] = caller = self._caller(headers, scope)
        await self._rate.take(caller)
        received = await self._receiving.whole(caller, headers, receive)
        # Who has none in work is let in: one key's requests must not close the door to another's.
        if self._in_flight[caller] and self._in_flight.total() >= self._limits.max_in_flight:
            raise unavailable("The service has all the work that it can take. Send the request again.")
        self._in_flight[caller] += 1
        metrics.level(metrics.IN_FLIGHT, self._in_flight.total())
        try:
            await self._timed(scope, received, answer)
        finally:
            self._in_flight[caller] -= 1
            # Only callers that have some are kept.
            self._in_flight = +self._in_flight
            metrics.level(metrics.IN_FLIGHT, self._in_flight.total())

    def _caller(self, headers: dict[bytes, bytes], scope: Any) -> str:
        """Whose request it is, by key or by address. Refuses strangers."""
        address = (scope.get("client") or ("unknown",))[0]
        if not self._keys:
            if address not in _LOOPBACK:
                raise Refused(403, "forbidden", "This service has no API keys and answers its own machine only.")
            return str(address)
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        name = self._keys.name(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            message = "Send a valid API key: Authorization: Bearer KEY."
            raise Refused(401, "invalid_api_key", message, **{"www-authenticate": "Bearer"})
        return name

    async def _timed(self, scope: Any, receive: Any, answer: "_Answer") -> None:
        seconds = self._limits.request_timeout_s
        try:
            async with asyncio.timeout(seconds) as timer:
                # A stream that has begun may go on: its reader sees that it is alive.
                answer.begun = lambda: None if timer.expired() else timer.reschedule(None)
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            raise Refused(504, "timeout", f"No answer within {seconds:g} seconds.") from None


class _Answer:
    """Sends what the application answers, with our headers, and remembers its status."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.code = 0
        self.begun: Any = None

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            own = {name for name, _ in message["headers"]}
            extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
            message = {**message, "headers": [*message["headers"], *extra]}
            if self.begun:
                self.begun()
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        metrics.count(metrics.ERRORS, 1, type=refused.kind)
        if self.code:
            return  # Too late to say so: the answer has begun, and ends here.
        body = json.dumps(error(refused.code, refused.kind, refused.message)).encode()
        fields = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        headers = [(k.encode(), v.encode()) for k, v in fields.items()]
        await self.send({"type": "http.response.start", "status": refused.code, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
