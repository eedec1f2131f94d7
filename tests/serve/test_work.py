"""What a request costs is what it may make: sequences times tokens, bounded for one request and for a minute."""

import asyncio
from typing import Any

import pytest

from serve.call import Call
from serve.rates import Rate
from serve.refused import Refused
from serve.schemas import ExpandMany, ExpandOne
from tests.serve.test_batches import http
from tests.tools.engine import Steady, steady


def test_one_request_may_make_so_many_tokens() -> None:
    engine = Steady()
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/expand", {"queries": ["x"] * 256, "num_expansions": 50, "max_tokens": 11}),
        ("/v1/expand", {"query": "x", "num_expansions": 50, "max_tokens": 2001}),
        ("/v1/completions", {"prompt": ["x"] * 256, "n": 50, "max_tokens": 11, "stream": True}),
        ("/v1/completions", {"prompt": ["x"] * 256, "n": 50, "max_tokens": 11}),
    ]
    with http(engine, limits={"max_request_tokens": 100_000}) as client:
        engine.max_model_len = 4096
        for route, body in bodies:
            refused = client.post(route, json=body)
            assert refused.status_code == 422 and "at most 100000" in refused.json()["error"]["message"]
        assert not engine.begun
        # As many requests as before, each of less work.
        assert client.post("/v1/expand", json={"query": "x", "num_expansions": 50, "max_tokens": 20}).status_code == 200


def test_the_rate_is_kept_by_work() -> None:
    with http(Steady(), limits={"tokens_per_minute": 1000}, cache={"size": 0}) as client:
        ask = {"queries": ["x"] * 10, "num_expansions": 5, "max_tokens": 10}
        codes = [client.post("/v1/expand", json=ask).status_code for _ in range(4)]
        assert codes == [200, 200, 429, 429]
        refused = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["type"] == "rate_limit_exceeded"
        # What could never be allowed is no matter of waiting.
        assert client.post("/v1/completions", json={"prompt": "x", "n": 21, "max_tokens": 50}).status_code == 422
        assert client.post("/v1/expand", json={"query": "x", "skip": True}).status_code == 200


def test_what_is_kept_or_skipped_costs_nothing() -> None:
    with http(Steady(), limits={"tokens_per_minute": 10}) as client:
        assert [client.post("/v1/expand", json={"query": "x"}).status_code for _ in range(5)] == [200] * 5
        assert client.post("/v1/expand", json={"query": "y"}).status_code == 429


def test_each_caller_has_a_rate_of_its_own_and_a_refusal_takes_nothing() -> None:
    async def ask() -> None:
        rate = Rate(100, "tokens")
        await rate.take("heavy", 90)
        with pytest.raises(Refused) as refused:
            await rate.take("heavy", 50)
        assert refused.value.code == 429 and int(refused.value.headers["retry-after"]) >= 24
        await rate.take("heavy", 10)
        await rate.take("light", 100)

    asyncio.run(ask())


def test_a_batch_of_too_much_work_is_refused_before_any_of_it() -> None:
    engine = Steady()
    service = steady(engine, limits={"max_request_tokens": 100})

    async def ask() -> None:
        with pytest.raises(Refused):
            await service.expand_many(ExpandMany(queries=["x"] * 11, max_tokens=10), Call())
        with pytest.raises(Refused):
            await anext(service.stream("x", ExpandOne(query="x", max_tokens=101), Call()))
        assert not engine.begun

    asyncio.run(ask())
