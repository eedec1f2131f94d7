"""The aligned expander as a Ray Serve application: `serve run serve.app:build model=PATH`, or `serve/config.yaml`.

One deployment takes requests and holds the engine, so that a request crosses no process of Python's but its replica's.
Where an index is mounted, a second one searches it on CPUs.
"""

import asyncio
import gc
import logging
import os
from typing import Any, cast

from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.context import _get_global_client

from aqe.config.serve import SearchConfig, ServeConfig
from serve.engine import EngineStopped
from serve.keys import check_exposure, load_keys

log = logging.getLogger("ray.serve")


@serve.deployment(
    name="Expander",
    # Waiting is the guard's to bound: it answers 503 whatever proxy stands before the replica.
    max_ongoing_requests=1024,
    health_check_period_s=5,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=60,
    # A replacement starts before its predecessor goes.
    max_surge_percent=100,
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress()
class ExpanderDeployment:
    """HTTP and the engine."""

    # The engine belongs to the event loop that it is made on.
    async def __init__(self, config: ServeConfig, searcher: Any = None) -> None:  # type: ignore[misc]
        from serve.service import ExpandService

        self._keys = load_keys(config.keys_file)
        self._config = config
        self._searcher = _Remote(searcher) if searcher else None
        self._service = await ExpandService.open(config)
        # What is loaded stays. Looking through all of it for garbage, as a large batch makes Python do, took a quarter
        # of a second, in which nobody was answered.
        gc.collect()
        gc.freeze()
        self._ending = asyncio.create_task(self._end_with_the_engine())

    def __serve_build_asgi_app__(self) -> Any:
        from serve.guard import Guard
        from serve.routes import make_api

        return Guard(make_api(self._service, self._searcher), self._keys, self._config.limits)

    async def _end_with_the_engine(self) -> None:
        """A replica whose engine's process is gone ends at once: three failed health checks would take too long, and
        until then the proxy would send it more than others get, because it answers quickest."""
        while True:
            await asyncio.sleep(0.25)
            try:
                await self._service.engine.check()
            except EngineStopped as stopped:
                log.error("%s: this replica ends, another one is started", stopped)
                os._exit(1)

    async def check_health(self) -> None:
        """Ray replaces a replica that raises here."""
        await self._service.check()

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.engine.close()


@serve.deployment(max_ongoing_requests=64, max_surge_percent=100, ray_actor_options={"num_cpus": 0.5})
class Search:
    """The index. A deployment of its own: it needs memory and CPUs where the expander needs a GPU."""

    def __init__(self, config: SearchConfig) -> None:
        from serve.search import Searcher

        self._searcher = Searcher(config)

    async def search(self, *args: Any) -> dict[str, Any]:
        """See `Searcher.search`."""
        return await self._searcher.search(*args)

    async def examples(self) -> list[dict[str, Any]]:
        """See `Searcher.examples`."""
        return await self._searcher.examples()


class _Remote:
    """`serve.search.Searcher` on another process."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def search(self, *args: Any) -> Any:
        try:
            return await self._handle.search.remote(*args)
        except RayTaskError as error:
            # Ray's own message is a traceback.
            raise error.cause from None

    async def examples(self) -> Any:
        return await self._handle.examples.remote()


def _address() -> str:
    """Where the proxies listen. Ray has no public way to ask."""
    return str(_get_global_client().http_config.host)


def build(config: ServeConfig) -> Any:
    """The application, for `serve run` and `serve deploy`.

    Raises ConfigError when others than this machine could use it without a key.
    """
    check_exposure(_address(), load_keys(config.keys_file))
    expander, search = cast(Any, ExpanderDeployment), cast(Any, Search)  # Deployments: the decorators are not typed.
    return expander.bind(config, search.bind(config.search) if config.search else None)
