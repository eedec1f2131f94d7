"""The example client against a server of canned answers."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from aqe.compose import compose
from aqe.errors import InputError
from serve import client
from serve.client import Client
from serve.schemas import (
    MAX_QUERY_CHARS,
    Expanded,
    ExpandedMany,
    ExpandMany,
    ExpandOne,
    Failed,
    SearchOne,
    error,
)
from tests.tools.waiting import http_server

EXPANSIONS = {"who wrote carmen?": "Georges Bizet", "gold": "a yellow metal", "opéra": "Ligne\u2028suivante, 音楽"}


class Canned:
    """A service whose expansions are given. Remembers what it was asked; refuses first, as often as told."""

    def __init__(self, expansions: dict[str, str] = EXPANSIONS, key: str | None = None) -> None:
        self.expansions = expansions
        self.key = key
        self.asked: list[Any] = []
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.chunks: list[bytes] = []
        self.app = FastAPI()
        self.app.post("/v1/expand")(self.expand)
        self.app.post("/v1/search")(self.search)
        self.app.exception_handler(RequestValidationError)(self.invalid)

    async def expand(self, request: Request, body: ExpandOne | ExpandMany) -> Response:
        self.asked.append(await request.json())
        if self.refusals:
            code, headers = self.refusals.pop(0)
            return JSONResponse(error(code, "overloaded", "The service is busy."), code, headers)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return JSONResponse(error(401, "invalid_api_key", "Send a valid API key."), 401)
        if isinstance(body, ExpandMany):
            odd = InputError("too long")
            results = [self.answer(q) if len(q) <= MAX_QUERY_CHARS else Failed.of(q, odd) for q in body.queries]
            return _json(ExpandedMany(results=results, model="canned", milliseconds=1))
        if body.stream:
            return StreamingResponse(iter(self.chunks), media_type="text/event-stream")
        return _json(self.answer(body.query))

    async def search(self, body: SearchOne) -> Response:
        hit = {"rank": 1, "docid": "d1", "score": 2.5, "title": None, "rank_other": 3, "terms": []}
        expanded = self.answer(body.query).model_dump()
        return JSONResponse({"expanded": expanded, "plain_hits": [hit], "expanded_hits": [hit | {"title": "Carmen"}]})

    async def invalid(self, request: Request, raised: Exception) -> Response:
        return JSONResponse(error(422, "invalid_request_error", "queries.1: too long"), 422)

    def answer(self, query: str) -> Expanded:
        made = self.expansions.get(query, "")
        rest: dict[str, Any] = {"num_tokens": 5, "finish_reason": "stop", "cached": False, "milliseconds": 1}
        return Expanded(query=query, expansion=made, composed=compose(query, made), model="canned", **rest)

    def events(self, *events: tuple[str, Any]) -> bytes:
        return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events).encode()


def _json(made: Any) -> Response:
    return Response(made.model_dump_json(), media_type="application/json")


@pytest.fixture
def canned() -> Canned:
    return Canned()


@pytest.fixture
def url(canned: Canned) -> Iterator[str]:
    with http_server(canned.app) as address:
        yield address


def test_one_and_many(canned: Canned, url: str) -> None:
    asks = Client(f"{url}/")
    assert asks.expand("gold", max_tokens=7)["composed"] == "gold ? a yellow metal"
    made = asks.expand_many(["opéra", "unknown", "gold"], skip=False)
    assert [one["expansion"] for one in made] == ["Ligne\u2028suivante, 音楽", "", "a yellow metal"]
    assert canned.asked == [
        {"query": "gold", "max_tokens": 7},
        {"queries": ["opéra", "unknown", "gold"], "skip": False},
    ]


def test_stream_gives_text_as_it_comes_then_the_answer(canned: Canned, url: str) -> None:
    answer = canned.answer("opéra").model_dump()
    raw = canned.events(("token", {"text": "Ligne"}), ("token", {"text": "\u2028suivante,\n音楽"}), ("done", answer))
    # The network may cut anywhere, inside of a line too.
    canned.chunks = [raw[i : i + 7] for i in range(0, len(raw), 7)]
    assert list(Client(url).stream("opéra")) == ["Ligne", "\u2028suivante,\n音楽", answer]


def test_stream_that_fails_or_breaks_is_an_error(canned: Canned, url: str) -> None:
    token = ("token", {"text": "a"})
    canned.chunks = [canned.events(token, ("error", error(503, "overloaded", "the engine stopped")))]
    with pytest.raises(requests.RequestException, match="the engine stopped"):
        list(Client(url).stream("gold"))
    canned.chunks = [canned.events(token)]
    with pytest.raises(requests.RequestException, match="ended before"):
        list(Client(url).stream("gold"))


def test_a_busy_service_is_asked_again_when_it_says(canned: Canned, url: str) -> None:
    canned.refusals = [(429, {"Retry-After": "1"}), (503, {})]
    started = time.monotonic()
    assert Client(url).expand("gold")["expansion"] == "a yellow metal"
    assert time.monotonic() - started > 1
    assert len(canned.asked) == 3


def test_a_refusal_has_the_services_words(canned: Canned, url: str) -> None:
    with pytest.raises(requests.HTTPError, match=r"422: queries\.1: too long"):
        Client(url).expand_many(["a", "b" * 25_000])
    good, odd = Client(url).expand_many(["gold", "b" * 5_000])
    assert good["expansion"] == "a yellow metal" and odd["error"]["message"] == "too long"
    with pytest.raises(requests.HTTPError, match="404: Not Found"):
        Client(f"{url}/page").expand("gold")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["client", *arguments])
    return client.main()


def test_the_key_is_sent_whatever_the_netrc_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with http_server(Canned(key="a key of the service").app) as url:
        assert Client(url, "a key of the service").expand("gold")["expansion"] == "a yellow metal"
        with pytest.raises(requests.HTTPError, match="401"):
            Client(url, "another key").expand("gold")


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    canned = Canned(key="a key of the service")
    answer = canned.answer("gold").model_dump()
    canned.chunks = [canned.events(("token", {"text": "a yellow"}), ("token", {"text": " metal"}), ("done", answer))]
    with http_server(canned.app) as url:
        monkeypatch.delenv("AQE_API_KEY", raising=False)
        assert run(monkeypatch, "gold", "--url", url) == 2
        assert capsys.readouterr().err == "401: Send a valid API key.\n"
        monkeypatch.setenv("AQE_API_KEY", "a key of the service")
        assert run(monkeypatch, "gold", "--url", url) == 0
        assert capsys.readouterr().out == "a yellow metal\n\ngold ? a yellow metal\n"
        assert run(monkeypatch, "who wrote carmen?", "--search", "--url", url) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "who wrote carmen ? Georges Bizet"
    assert lines[2:4] == ["plain:", "   1    2.500  d1"]
    assert lines[5:] == ["expanded:", "   1    2.500  d1  Carmen"]
