"""An engine that works is alive, however long the answers take that are wanted of it; one that stands still is not."""

import asyncio

import pytest

from serve.call import Call
from serve.engine import EngineStopped
from serve.schemas import ExpandMany, ExpandOne
from tests.tools.engine import Steady, steady


@pytest.mark.parametrize("several", [False, True])
def test_an_engine_that_makes_tokens_is_not_stuck_though_no_answer_is_finished(several: bool) -> None:
    async def measured() -> None:
        engine = Steady(step_s=0.02)
        service = steady(engine, limits={"stuck_after_s": 0.5})
        many = ExpandMany(queries=["a", "b", "c"], num_expansions=5, max_tokens=200)
        one = ExpandOne(query="a", max_tokens=200)
        asked = asyncio.create_task(
            service.expand_many(many, Call()) if several else service.expand("a", one, Call())  # type: ignore[arg-type]
        )
        for _ in range(15):
            await asyncio.sleep(0.1)
            await service.check()
        assert not asked.done()
        asked.cancel()

    asyncio.run(measured())


def test_an_engine_that_makes_no_step_is_stuck_when_it_has_work() -> None:
    async def measured() -> None:
        engine = Steady(step_s=60)
        service = steady(engine, limits={"stuck_after_s": 0.1})
        await asyncio.sleep(0.2)
        # Idle is not stuck, and the time without work does not count.
        await service.check()
        asked = asyncio.create_task(service.expand("a", ExpandOne(query="a"), Call()))
        await asyncio.sleep(0)
        await service.check()
        await asyncio.sleep(0.2)
        with pytest.raises(EngineStopped, match="has 1 sequences in work and made no token for"):
            await service.check()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await service.check()

    asyncio.run(measured())
