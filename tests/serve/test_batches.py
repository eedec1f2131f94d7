"""Several queries in one request: each has its own result or error, and what is refused leaves no work behind."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from aqe.errors import InputError
from serve.engine import EngineStopped, Job, Piece
from serve.guard import Guard
from serve.keys import Keys
from serve.routes import make_api
from serve.together import together
from tests.tools.engine import Steady, steady

LONG = "é" * 300


@contextmanager
def http(engine: Steady, searcher: Any = None, **config: Any) -> Iterator[TestClient]:
    made = steady(engine, **config)
    guarded = Guard(make_api(made, searcher), Keys(()), made.config.limits)
    with TestClient(guarded, client=("127.0.0.1", 50000), raise_server_exceptions=False) as client:
        yield client


def test_the_first_error_ends_the_others_and_is_raised_as_it_is() -> None:
    ended: list[int] = []

    async def work(item: int) -> int:
        try:
            await asyncio.sleep(0 if item == 2 else 60)
        finally:
            ended.append(item)
        raise InputError("item 2")

    with pytest.raises(InputError, match="item 2"):
        asyncio.run(together(work, range(4), 4))
    assert sorted(ended) == [0, 1, 2, 3]


def test_results_keep_their_order_and_no_more_than_allowed_run_at_once() -> None:
    running, most = 0, 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (5 - item % 5))
        running -= 1
        return item * item

    assert asyncio.run(together(work, range(20), 3)) == [item * item for item in range(20)]
    assert most == 3 and asyncio.run(together(work, [7], 3)) == [49]


def test_one_odd_query_does_not_lose_a_batch() -> None:
    engine = Steady()
    queries = ["first", "", LONG, "x" * 5000, " \n", "last"]
    with http(engine) as client:
        answer = client.post("/v1/expand", json={"queries": queries})
        assert answer.status_code == 200
        results = answer.json()["results"]
    assert [result["query"] for result in results] == queries
    assert ["error" in result for result in results] == [False, True, True, True, True, False]
    assert results[0]["composed"] == "first first ? xxxxxxxx"
    assert all(set(results[i]["error"]) == {"message", "type", "code", "param"} for i in (1, 2, 3, 4))
    assert "300" not in results[2]["error"]["message"] and "tokens" in results[2]["error"]["message"]
    assert "4000" in results[3]["error"]["message"] and results[3]["error"]["code"] == 422


def test_a_body_that_is_wrong_as_a_whole_is_refused_with_the_index() -> None:
    engine = Steady()
    with http(engine) as client:
        for wrong, place in ((3, "queries.1"), (None, "queries.1"), ("x" * 20_001, "queries.1")):
            refused = client.post("/v1/expand", json={"queries": ["good", wrong]})
            assert refused.status_code == 422 and refused.json()["error"]["param"] == place
            # No names of ours, and nothing about the other form of a body.
            assert refused.json()["error"]["message"].startswith(f"{place}: ")
        assert client.post("/v1/expand", json={"queries": ["x"] * 257}).status_code == 422
    assert not engine.begun


def test_a_batch_that_fails_leaves_no_work_behind() -> None:
    engine = Steady(step_s=0.01)
    service = steady(engine, cache={"size": 0})

    class Dies(Steady):
        async def stream(self, job: Job, number: int) -> AsyncGenerator[Piece]:
            if "the one" in job.prompt:
                await asyncio.sleep(0.02)
                raise EngineStopped("the engine's process has ended")
            async with asyncio.timeout(60):
                async for piece in engine.stream(job, number):
                    yield piece

    service.generator.engine = Dies()

    async def ask() -> None:
        from serve.call import Call
        from serve.schemas import ExpandMany

        body = ExpandMany(queries=["a", "the one", "b", *"cdefgh"], num_expansions=10, max_tokens=200)
        with pytest.raises(EngineStopped):
            await service.expand_many(body, Call())
        begun = len(engine.begun)
        await asyncio.sleep(0.05)
        assert engine.running == 0 and len(engine.begun) == begun

    asyncio.run(ask())


def test_openai_routes_refuse_the_whole_before_anything_is_made() -> None:
    engine = Steady()
    with http(engine) as client:
        for stream in (False, True):
            body = {"prompt": ["good"] * 255 + [LONG], "max_tokens": 10, "n": 10, "stream": stream}
            refused = client.post("/v1/completions", json=body)
            assert refused.status_code == 422 and "prompt.255: " in refused.json()["error"]["message"]
    assert not engine.begun


def test_several_queries_are_searched_each_with_its_own_result() -> None:
    class Index:
        """Finds nothing, and knows one query that it cannot search."""

        async def search(self, query: str, *args: object) -> dict[str, Any]:
            if query == "odd":
                raise InputError("no such passage")
            times = {"search_plain": 1.0, "search_expanded": 1.0, "explain": 1.0}
            return {"plain_hits": [], "expanded_hits": [], "gold": [], "milliseconds": times}

    with http(Steady(), Index()) as client:
        answer = client.post("/v1/search", json={"queries": ["one", LONG, "odd", "two"], "k": 3})
        assert answer.status_code == 200
        results = answer.json()["results"]
        assert [result.get("error", {}).get("code") for result in results] == [None, 422, 422, None]
        assert results[3]["expanded"]["composed"] == "two two ? xxxxxxxx"
        assert client.post("/v1/search", json={"query": "one"}).json()["expanded"]["query"] == "one"
        assert client.post("/v1/search", json={"query": LONG}).status_code == 422
        assert client.post("/v1/search", json={"queries": ["one", 2]}).json()["error"]["param"] == "queries.1"
        many = client.post("/v1/search", json={"queries": ["one"] * 100, "k": 26})
        assert many.status_code == 422 and "2560 hits" in many.json()["error"]["message"]
