"""What is asked for twice is made once, in flight and afterwards, and no caller learns what another has asked."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.testclient import TestClient

from aqe.config.serve import CacheConfig
from aqe.errors import InputError
from aqe.expand.recipe import Expansion
from serve.cache import Cache
from serve.call import Call
from serve.flights import Flights
from serve.guard import Guard
from serve.keys import Keys
from serve.routes import make_api
from serve.schemas import ExpandMany, ExpandOne
from tests.serve.test_batches import http
from tests.tools.engine import Steady, steady

ONE = ExpandOne(query="same")


def test_the_same_query_in_flight_is_made_once() -> None:
    async def measured() -> None:
        engine = Steady(step_s=0.001)
        service = steady(engine, cache={"size": 0})
        answers = await asyncio.gather(*(service.expand("same", ONE, Call("a")) for _ in range(10)))
        assert len(engine.begun) == 1 and len({answer.composed for answer in answers}) == 1
        assert not any(answer.cached for answer in answers)
        # A batch, too, and further expansions, which have a seed each.
        await service.expand_many(ExpandMany(queries=["again"] * 20, num_expansions=3), Call("a"))
        assert len(engine.begun) == 1 + 3
        # Another caller's is made for it alone.
        await asyncio.gather(*(service.expand("same", ONE, Call(name)) for name in "ab"))
        assert len(engine.begun) == 1 + 3 + 2

    asyncio.run(measured())


@pytest.mark.parametrize(("asked", "sequences"), [({"temperature": 0}, 1), ({"seed": 7}, 1), ({}, 4)])
def test_openai_requests_are_made_once_when_they_would_come_out_the_same(asked: dict[str, Any], sequences: int) -> None:
    engine = Steady(step_s=0.001)
    prompts = ["the prompt"] * 4
    with http(engine) as client:
        whole = client.post("/v1/completions", json={"prompt": prompts, "max_tokens": 5, **asked}).json()
        assert len(engine.begun) == sequences
        assert [choice["text"] for choice in whole["choices"]] == ["xxxxx"] * 4
        assert whole["usage"]["completion_tokens"] == 20
        streamed = client.post("/v1/completions", json={"prompt": prompts, "max_tokens": 5, "stream": True, **asked})
        assert streamed.text.count('"text":"x"') == 20 and len(engine.begun) == 2 * sequences


def test_who_comes_late_gets_all_and_who_leaves_takes_nothing_away() -> None:
    async def measured() -> None:
        going = asyncio.Event()
        ended: list[str] = []

        async def numbers() -> AsyncGenerator[int]:
            try:
                yield 1
                await going.wait()
                yield 2
                yield 3
            finally:
                ended.append("ended")

        flights: Flights[int] = Flights()
        first = flights.join("key", numbers)
        assert await anext(first) == 1
        late = asyncio.create_task(_all(flights.join("key", numbers)))
        await asyncio.sleep(0)
        await first.aclose()
        assert not ended
        going.set()
        assert await late == [1, 2, 3] and ended == ["ended"]
        # It is over: the next one begins anew, and ends when its last reader leaves.
        going.clear()
        alone = flights.join("key", numbers)
        assert await anext(alone) == 1
        await alone.aclose()
        assert ended == ["ended", "ended"] and not flights._flying

    asyncio.run(measured())


def test_all_readers_see_an_error() -> None:
    async def measured() -> None:
        async def fails() -> AsyncGenerator[int]:
            yield 1
            await asyncio.sleep(0)
            raise InputError("broken")

        flights: Flights[int] = Flights()
        both = await asyncio.gather(*(_all(flights.join("key", fails)) for _ in range(2)), return_exceptions=True)
        assert [str(error) for error in both] == ["broken", "broken"]

    asyncio.run(measured())


async def _all(source: AsyncGenerator[int]) -> list[int]:
    return [number async for number in source]


def test_cached_tells_no_key_what_another_has_asked() -> None:
    keys = ["a-key-that-nobody-guesses", "another-key-of-length"]
    made = steady(Steady())
    with TestClient(Guard(make_api(made), Keys(keys), made.config.limits)) as client:
        mine, other = ({"authorization": f"Bearer {key}"} for key in keys)

        def cached(headers: dict[str, str]) -> bool:
            return bool(client.post("/v1/expand", json={"query": "secret"}, headers=headers).json()["cached"])

        assert [cached(mine), cached(mine), cached(other), cached(other)] == [False, True, False, True]


def test_what_is_kept_is_bounded_in_bytes_and_in_number() -> None:
    def expansions(number: int, characters: int) -> tuple[Expansion, ...]:
        return tuple(Expansion("q" * characters, "x" * characters, "c", "stop", 1, 0) for _ in range(number))

    cache = Cache(CacheConfig(size=1000, max_bytes=200_000))
    for i in range(300):
        cache.keep(i, expansions(2, 1000))
        assert cache.bytes <= 200_000
    assert cache.get(299) and cache.get(0) is None
    assert 20 < sum(cache.get(i) is not None for i in range(300)) < 60
    # One that is larger than all is not kept, and takes nobody's place.
    cache.keep("huge", expansions(50, 10_000))
    assert cache.get("huge") is None and cache.get(299)
    few = Cache(CacheConfig(size=3))
    for i in range(10):
        few.keep(i, expansions(1, 10))
    assert [few.get(i) is not None for i in range(10)] == [False] * 7 + [True] * 3
    none = Cache(CacheConfig(size=0))
    none.keep(1, expansions(1, 10))
    assert none.get(1) is None
