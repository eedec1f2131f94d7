"""Work on several items at once, none of which goes on when another has failed or nobody waits any more."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


async def together(
    work: Callable[[Item], Coroutine[Any, Any, Made]], items: Sequence[Item], at_once: int
) -> list[Made]:
    """What `work` makes of each item, in their order; at most so many `at_once`, each in a task of its own.

    The first error ends all others and is raised as it is.
    """
    if len(items) == 1:
        # A task of its own costs time.
        return [await work(items[0])]
    made: dict[int, Made] = {}
    left = iter(enumerate(items))

    async def worker() -> None:
        # All workers draw from one iterator: ten thousand items are no ten thousand tasks.
        for place, item in left:
            made[place] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [made[place] for place in range(len(items))]
