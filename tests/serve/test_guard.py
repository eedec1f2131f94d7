"""Keys, limits and time: who may ask, how much, and what the others are told."""

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from aqe.config.serve import LimitsConfig
from aqe.errors import ConfigError, InputError
from serve.guard import Guard
from serve.keys import Keys, check_exposure, load_keys
from tests.tools.serve import KEY

LOCAL = ("127.0.0.1", 50000)


def guarded(app: Any, keys: tuple[str, ...] = (), address: tuple[str, int] = LOCAL, **limits: Any) -> TestClient:
    made = Guard(app, Keys(keys), LimitsConfig.model_validate(limits))
    return TestClient(made, client=address, raise_server_exceptions=False)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def test_with_keys_only_their_owners_are_answered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    http = guarded(echo, keys=(KEY, "another-key-of-length"), address=("203.0.113.9", 1))
    assert http.get("/x", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    assert http.get("/x", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    for header in ({}, {"authorization": KEY}, {"authorization": "Bearer nonsense"}, {"authorization": f"Basic {KEY}"}):
        refused = http.get("/x", headers=header)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["type"] == "invalid_api_key"
    # What reveals nothing is open: probes and the page.
    assert all(http.get(path).status_code == 200 for path in ("/", "/healthz", "/readyz", "/docs", "/page/app.js"))
    assert KEY not in caplog.text


def test_without_keys_only_this_machine_is_answered() -> None:
    assert guarded(echo).get("/x").status_code == 200
    assert guarded(echo, address=("203.0.113.9", 1)).get("/x").status_code == 403


@given(st.text(min_size=1, max_size=40))
def test_no_other_text_is_a_key(text: str) -> None:
    keys = Keys([KEY])
    assert (keys.name(text) is not None) == (text == KEY)


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AQE_API_KEYS", raising=False)
    file = tmp_path / "keys"
    file.write_text(f"# of the search team\n{KEY}\n\n")
    monkeypatch.setenv("AQE_API_KEYS", "one-more-long-key-a, one-more-long-key-b")
    keys = load_keys(file)
    assert all(keys.name(key) for key in (KEY, "one-more-long-key-a", "one-more-long-key-b"))
    monkeypatch.setenv("AQE_API_KEYS", "short")
    with pytest.raises(ConfigError, match="can be guessed"):
        load_keys(None)
    monkeypatch.delenv("AQE_API_KEYS")
    assert not load_keys(None)
    with pytest.raises(InputError, match="cannot be read"):
        load_keys(tmp_path / "missing")
    file.write_text("# none yet\n")
    with pytest.raises(InputError, match="holds no key"):
        load_keys(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "search.example.org"])
def test_no_start_beyond_loopback_without_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="no API key"):
        check_exposure(host, Keys([]))
    check_exposure(host, Keys([KEY]))
    check_exposure("127.0.0.1", Keys([]))


def test_long_bodies_are_refused_whether_they_tell_their_length_or_not() -> None:
    async def reads(scope: Any, receive: Any, send: Any) -> None:
        from fastapi import FastAPI, Request

        from serve.routes import _add_errors

        api = FastAPI()
        _add_errors(api)

        @api.post("/x")
        async def x(request: Request) -> int:
            return len(await request.body())

        await api(scope, receive, send)

    http = guarded(reads, max_body_bytes=1024)
    assert http.post("/x", content=b"a" * 1024).text == "1024"
    assert http.post("/x", content=b"a" * 1025).status_code == 413
    chunked = http.post("/x", content=iter([b"a" * 600, b"a" * 600]))
    assert chunked.status_code == 413 and "1024 bytes" in chunked.json()["error"]["message"]
    assert http.post("/x", content=b"a" * 10_000_000).status_code == 413


def test_more_than_the_limit_in_a_minute_waits() -> None:
    http = guarded(echo, keys=(KEY, "another-key-of-length"), requests_per_minute=3)
    mine, other = ({"authorization": f"Bearer {key}"} for key in (KEY, "another-key-of-length"))
    assert [http.get("/x", headers=mine).status_code for _ in range(5)] == [200] * 3 + [429] * 2
    assert 1 <= int(http.get("/x", headers=mine).headers["retry-after"]) <= 60
    assert http.get("/x", headers=other).status_code == 200
    assert http.get("/healthz").status_code == 200


def test_more_work_than_allowed_is_refused_and_the_rest_is_done() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await echo(scope, receive, send)

    codes: list[tuple[int, str]] = []
    http = guarded(slow, max_in_flight=4)

    def ask() -> None:
        answer = http.get("/x")
        codes.append((answer.status_code, answer.headers.get("retry-after", "")))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [(200, "")] * 4 + [(503, "1")] * 6
    assert http.get("/x").status_code == 200


def test_one_keys_requests_do_not_close_the_door_to_another() -> None:
    entered = threading.Semaphore(0)
    going = threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        entered.release()
        while not going.is_set():
            await asyncio.sleep(0.01)
        await echo(scope, receive, send)

    mine, other = ({"authorization": f"Bearer {key}"} for key in (KEY, "another-key-of-length"))
    http = guarded(slow, keys=(KEY, "another-key-of-length"), max_in_flight=3)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(http.get("/x", headers=mine).status_code)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        entered.acquire()
    assert http.get("/x", headers=mine).status_code == 503
    threads.append(threading.Thread(target=lambda: codes.append(http.get("/x", headers=other).status_code)))
    threads[-1].start()
    assert entered.acquire(timeout=60)
    assert http.get("/x", headers=other).status_code == 503
    going.set()
    for thread in threads:
        thread.join()
    assert codes == [200] * 4


def test_an_answer_that_does_not_begin_in_time_is_given_up() -> None:
    stopped = threading.Event()

    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    started = time.monotonic()
    answer = guarded(hangs, request_timeout_s=0.2).get("/x")
    assert answer.status_code == 504 and answer.json()["error"]["type"] == "timeout"
    assert time.monotonic() - started < 10 and stopped.is_set()


def test_a_stream_that_has_begun_may_take_longer() -> None:
    async def drips(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(5):
            await asyncio.sleep(0.1)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    assert guarded(drips, request_timeout_s=0.2).get("/x").text == "xxxxx"


def test_an_error_of_our_own_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    from fastapi import FastAPI

    from serve.routes import _add_errors

    api = FastAPI()
    _add_errors(api)

    @api.get("/x")
    async def x() -> None:
        raise RuntimeError("/home/secret/path")

    answer = guarded(api).get("/x")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "internal_error"
    assert "secret" not in answer.text and "secret" in caplog.text
