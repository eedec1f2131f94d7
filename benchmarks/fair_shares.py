"""One user's queries alone, then beside another user's huge job: the part of `make bench-serve` about fair shares."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

#: Of one request of the heavy user: so many queries, expansions and tokens, about as much as one request may ask for.
HEAVY_QUERIES, HEAVY_EXPANSIONS, HEAVY_TOKENS = 128, 10, 100
#: Until the heavy user's work fills the engine.
WARM_UP_S = 10.0


def write_keys(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A file of two new keys; the headers of the light and of the heavy user."""
    light, heavy = secrets.token_hex(32), secrets.token_hex(32)
    path.write_text(f"{light}\n{heavy}\n")
    path.chmod(0o600)
    return {"Authorization": f"Bearer {light}"}, {"Authorization": f"Bearer {heavy}"}


async def ask_for_ever(url: str, headers: dict[str, str], queries: Sequence[str]) -> None:
    """The heavy user: two requests at once, each of hundreds of sequences."""

    async def client(http: aiohttp.ClientSession, number: int) -> None:
        while True:
            # No two are alike: what is the same is computed once.
            several = [f"{queries[i % len(queries)]} {i}" for i in range(number, number + HEAVY_QUERIES)]
            body = {"queries": several, "num_expansions": HEAVY_EXPANSIONS, "max_tokens": HEAVY_TOKENS}
            async with http.post(url, json=body, headers=headers) as answer:
                await answer.read()
                # A time-out of the service's is part of a heavy user's life; another answer is a mistake here.
                if answer.status not in (200, 504):
                    raise SystemExit(f"the heavy user got {answer.status}: {(await answer.text())[:300]}")
            number += 2 * HEAVY_QUERIES

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        await asyncio.gather(client(http, 0), client(http, HEAVY_QUERIES))


async def watched(url: str, work: Awaitable[dict[str, float]]) -> dict[str, float]:
    """What `work` gives, and how long /healthz took meanwhile."""
    took: list[float] = []

    async def probe() -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                started = time.perf_counter()
                async with http.get(f"{url}/healthz") as answer:
                    await answer.read()
                took.append((time.perf_counter() - started) * 1000)
                await asyncio.sleep(0.2)

    probing = asyncio.ensure_future(probe())
    try:
        made = await work
    finally:
        probing.cancel()
    ordered = sorted(took)
    return made | {
        "healthz_p95_ms": round(ordered[int(0.95 * len(ordered))], 1),
        "healthz_max_ms": round(ordered[-1], 1),
    }


async def light_beside_heavy(
    light: Callable[[], Awaitable[dict[str, float]]], heavy: Callable[[], Awaitable[None]]
) -> dict[str, Any]:
    """What the light user saw, alone and then beside the heavy one, as a window's summary each."""
    alone = await light()
    task = asyncio.ensure_future(heavy())
    try:
        await asyncio.sleep(WARM_UP_S)
        beside = await light()
        if task.done():
            await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return {"alone": alone, "beside": beside, "p95_ratio": round(beside["p95_ms"] / alone["p95_ms"], 2)}
