"""Waiting for a condition, in one place, and a server that needs no waiting."""

import contextlib
import operator
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import uvicorn
from tenacity import RetryError, Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

#: Longer than anything that a test waits for takes on a busy machine.
SECONDS = 600


def until(reached: Callable[[], bool], why: Callable[[], str] = str, *, every: float = 0.1) -> float:
    """Look for a condition `every` few seconds until it comes; seconds that it took. `why` tells what is known if not.

    A server that does not answer has not reached it yet.
    """
    started = time.monotonic()
    looks = Retrying(
        retry=retry_if_result(operator.not_) | retry_if_exception_type(httpx.HTTPError),
        wait=wait_fixed(every),
        stop=stop_after_delay(SECONDS),
    )
    try:
        looks(reached)
    except RetryError:
        raise AssertionError(why()) from None
    return time.monotonic() - started


@contextlib.contextmanager
def http_server(app: Any) -> Iterator[str]:
    """The address of a real HTTP server in a thread of this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Who connects before the server is up waits in the kernel's queue.
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
