"""The event loop stays free: health checks are answered while the largest request that is allowed is worked on."""

import asyncio
import gc
import time

from serve.call import Call
from serve.schemas import ExpandMany
from tests.tools.engine import Steady, steady

#: Seconds of this process's own time, whatever else the machine does. Checks must be answered within a tenth.
LONGEST_S = 0.1


async def longest(work: object) -> float:
    """The longest that the loop was busy with one thing while `work` was done."""
    found = 0.0
    done = asyncio.ensure_future(work)  # type: ignore[call-overload]
    while not done.done():
        before = time.process_time()
        await asyncio.sleep(0)
        found = max(found, time.process_time() - before)
    await done
    return found


def test_a_request_of_thousands_of_sequences_leaves_the_loop_free() -> None:
    engine = Steady(places=64)
    engine.max_model_len = 8192
    service = steady(engine, limits={"max_request_tokens": 1 << 30})
    many = ExpandMany(queries=[f"query {i}" for i in range(256)], num_expansions=50, max_tokens=1)
    long = ExpandMany(queries=[f"{i} " * 1000 for i in range(256)], max_tokens=1)
    # As a replica does once it has loaded.
    gc.collect()
    gc.freeze()
    try:
        for body in (many, long):
            assert asyncio.run(longest(service.expand_many(body, Call()))) < LONGEST_S
    finally:
        gc.unfreeze()
    assert len(engine.begun) == 256 * 50 + 256
