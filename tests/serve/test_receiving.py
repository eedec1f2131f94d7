"""Half-sent requests take nobody's place, and not for long."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aqe.config.serve import LimitsConfig
from serve.guard import Guard
from serve.keys import Keys

KEYS = ("a-key-that-nobody-guesses", "another-key-of-length")
Sent = list[dict[str, Any]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


async def ask(guard: Guard, receive: Callable[[], Any], key: str = KEYS[0], **headers: str) -> tuple[int, bytes, Sent]:
    """One request: status, body, and all that was sent."""
    sent: Sent = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    fields = {"authorization": f"Bearer {key}", **headers}
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    await guard({"type": "http", "path": "/x", "headers": pairs, "client": ("203.0.113.9", 1)}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]), sent


def half(first: bytes = b"{") -> Callable[[], Any]:
    """A body of which only the beginning comes."""
    begun = False

    async def receive() -> dict[str, Any]:
        nonlocal begun
        if begun:
            await asyncio.sleep(60)
        begun = True
        return {"type": "http.request", "body": first, "more_body": True}

    return receive


def whole(*parts: bytes) -> Callable[[], Any]:
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    left.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return left.pop(0) if left else {"type": "http.disconnect"}

    return receive


def guarded(**limits: Any) -> Guard:
    return Guard(echo, Keys(KEYS), LimitsConfig.model_validate(limits))


def test_half_sent_bodies_take_no_place_from_others() -> None:
    async def measured() -> None:
        guard = guarded(max_in_flight=2, body_timeout_s=0.3)
        slow = [asyncio.create_task(ask(guard, half())) for _ in range(2)]
        await asyncio.sleep(0)
        # Another key is answered, and the same one may not send more at once than it may have in work.
        assert (await ask(guard, whole(b"abc", b"de"), KEYS[1]))[:2] == (200, b"5")
        assert (await ask(guard, whole(b"abc")))[0] == 503
        answers = await asyncio.gather(*slow)
        assert [code for code, _, _ in answers] == [408, 408]
        assert json.loads(answers[0][1])["error"]["message"] == "The request's body did not come within 0.3 seconds."
        assert (b"connection", b"close") in answers[0][2][0]["headers"]
        assert (await ask(guard, whole(b"abc")))[:2] == (200, b"3")

    asyncio.run(measured())


def test_a_body_that_drips_is_given_up() -> None:
    async def drip() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert asyncio.run(ask(guarded(body_timeout_s=0.2), drip))[0] == 408


def test_long_bodies_are_not_read_to_their_end() -> None:
    read = 0

    async def endless() -> dict[str, Any]:
        nonlocal read
        read += 1000
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    guard = guarded(max_body_bytes=5000)
    assert asyncio.run(ask(guard, endless))[0] == 413 and read <= 6000
    assert asyncio.run(ask(guard, half(), content_length="5001"))[0] == 413


def test_a_client_that_goes_while_it_sends_leaves_nothing() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def measured() -> None:
        guard = guarded(max_in_flight=1)
        for _ in range(3):
            assert (await ask(guard, gone))[0] == 400
        assert (await ask(guard, whole(b"abc")))[0] == 200
        sending = asyncio.create_task(ask(guard, half()))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert (await ask(guard, whole(b"abc")))[0] == 200

    asyncio.run(measured())


def test_the_application_sees_the_body_and_then_the_network() -> None:
    seen: list[str] = []

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert (message["body"], message["more_body"]) == (b"abcde", False)
        seen.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 204, "headers": []})

    guard = Guard(reads, Keys(KEYS), LimitsConfig())
    assert asyncio.run(ask(guard, whole(b"abc", b"de")))[0] == 204 and seen == ["http.disconnect"]
