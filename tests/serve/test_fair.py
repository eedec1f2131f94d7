"""The engine is shared between keys: a huge job of one does not make another's query wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from serve.call import Call
from serve.fair import LINGER_S, FairQueue, spare_places
from serve.schemas import ExpandMany, ExpandOne
from serve.service import ExpandService
from tests.tools.engine import Steady, Ticking, steady


@contextlib.asynccontextmanager
async def ticking(places: int, beside: float = 0.25) -> AsyncIterator[tuple[Ticking, ExpandService]]:
    """A service on an engine with a clock of its own."""
    engine = Ticking(places)
    service = steady(engine, cache={"size": 0})
    service.generator._queue = FairQueue(places, beside, engine.clock)
    work = asyncio.create_task(engine.work())
    try:
        yield engine, service
    finally:
        work.cancel()


async def seconds(engine: Ticking, asked: Callable[[], Awaitable[Any]], times: int) -> list[float]:
    """How long each of so many requests took, one after the other, in order of length."""
    took = []
    for _ in range(times):
        started = engine.now
        await asked()
        took.append(engine.now - started)
    return sorted(took)


def test_a_light_user_beside_a_heavy_one_waits_at_most_three_times_as_long() -> None:
    async def measured() -> None:
        async with ticking(64) as (engine, service):
            numbers = iter(range(10**6))

            async def light() -> None:
                query = f"query {next(numbers)}"
                await service.expand(query, ExpandOne(query=query, max_tokens=20), Call("light"))

            alone = await seconds(engine, light, 20)
            # 255 queries, 10 expansions of 100 tokens each, as in an attack: minutes of work.
            queries = [f"heavy {i}" for i in range(128)]
            body = ExpandMany(queries=queries, num_expansions=10, max_tokens=100)
            heavy = asyncio.create_task(service.expand_many(body, Call("heavy")))
            await asyncio.sleep(0)
            beside = await seconds(engine, light, 60)
            assert not heavy.done()
            p95 = [ordered[int(0.95 * len(ordered))] for ordered in (alone, beside)]
            assert p95[1] <= 3 * p95[0], p95
            heavy.cancel()

    asyncio.run(measured())


def test_who_comes_while_another_fills_the_engine_gets_a_place_at_once() -> None:
    async def measured() -> None:
        async with ticking(64) as (engine, service):
            queries = [f"heavy {i}" for i in range(100)]
            body = ExpandMany(queries=queries, max_tokens=200)
            heavy = asyncio.create_task(service.expand_many(body, Call("heavy")))
            while engine.running < 64:
                await asyncio.sleep(0)
            # One key alone has all the places, and none of those that are kept.
            assert engine.most == 64
            started, steps = engine.now, 10
            await service.expand("light", ExpandOne(query="light", max_tokens=steps), Call("light"))
            assert engine.running == 64 and engine.now - started < 0.01 * (1 + 66 / 16) * (steps + 2)
            heavy.cancel()

    asyncio.run(measured())


def test_a_key_alone_has_the_whole_engine_and_gives_most_of_it_up_while_others_ask() -> None:
    async def measured() -> None:
        async with ticking(16) as (engine, service):
            body = ExpandMany(queries=[f"heavy {i}" for i in range(200)], max_tokens=10)
            heavy = asyncio.create_task(service.expand_many(body, Call("heavy")))
            while len(engine.begun) < 40:
                await asyncio.sleep(0)
            assert engine.running == 16
            for i in range(5):
                await service.expand(f"light {i}", ExpandOne(query=f"light {i}", max_tokens=10), Call("light"))
            assert engine.running <= 4
            # The other one has gone for good.
            engine.now += LINGER_S + 1
            while engine.running < 16:
                await asyncio.sleep(0)
            heavy.cancel()

    asyncio.run(measured())


def test_two_heavy_keys_get_the_same_amount_of_work() -> None:
    async def measured() -> None:
        async with ticking(8, beside=1) as (engine, service):
            # One asks in long sequences, the other in short ones.
            jobs = [
                asyncio.create_task(
                    service.expand_many(
                        ExpandMany(queries=[f"{name} {i}" for i in range(200)], max_tokens=tokens), Call(name)
                    )
                )
                for name, tokens in (("long", 100), ("short", 10))
            ]
            while len(engine.begun) < 80:
                await asyncio.sleep(0)
            cost = {name: 0 for name in ("long", "short")}
            for job in engine.begun[16:]:
                cost[job.caller] += len(job.ids) + job.decoding.max_tokens
            assert 0.6 < cost["long"] / cost["short"] < 1.7, cost
            for each in jobs:
                each.cancel()

    asyncio.run(measured())


def test_who_gives_up_waiting_leaves_no_place_taken() -> None:
    async def measured() -> None:
        queue = FairQueue(1, 1.0)
        spare = spare_places(1)
        entered: list[str] = []

        async def hold(caller: str) -> None:
            async with queue.turn(caller, 1):
                entered.append(caller)
                await asyncio.sleep(60)

        holders = [asyncio.create_task(hold(f"{i}")) for i in range(1 + spare)]
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(hold("late")) for _ in range(3)]
        await asyncio.sleep(0)
        assert queue.running == 1 + spare and "late" not in entered
        waiting[0].cancel()
        # A place is given away in the moment in which the next one gives up.
        holders[0].cancel()
        await asyncio.sleep(0)
        waiting[1].cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert entered.count("late") == 1 and queue.running == 1 + spare
        for task in (*holders, *waiting):
            task.cancel()
        await asyncio.gather(*holders, *waiting, return_exceptions=True)
        assert queue.running == 0
        async with asyncio.timeout(10), queue.turn("again", 1):
            pass

    asyncio.run(measured())


@pytest.mark.parametrize("streams", [False, True])
def test_who_leaves_ends_its_work(streams: bool) -> None:
    async def measured() -> None:
        engine = Steady(step_s=0.001)
        service = steady(engine, cache={"size": 0})
        body = ExpandMany(queries=["a", "b"], num_expansions=5, max_tokens=100)
        if streams:
            stream = service.stream("a", ExpandOne(query="a", max_tokens=100), Call("x"))
            await anext(stream)
            await stream.aclose()
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await service.expand_many(body, Call("x"))
        await asyncio.sleep(0.01)
        assert engine.running == 0 and service.generator._queue.running == 0

    asyncio.run(measured())
