"""The service in this process: the real routes, guard and engine on a tiny model, without Ray's proxies."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from aqe.config.serve import ServeConfig
from aqe.expand.recipe import load_recipe
from aqe.expand.settings import ExpanderSettings
from aqe.prompts import resolve
from serve.engine_transformers import TransformersServing
from serve.guard import Guard
from serve.keys import Keys
from serve.routes import make_api
from serve.service import ExpandService
from tests.tools import tiny_model
from tests.tools.waiting import http_server

KEY = "a-key-that-nobody-guesses"


def aligned(path: Path, **changes: Any) -> Path:
    """A tiny model with the settings of an aligned one."""
    model = tiny_model.save(path / "model", **changes)
    ExpanderSettings(prompt=resolve("passage"), query_weight=2, max_tokens=8).write(model)
    return model


def service(model: Path, **config: Any) -> ExpandService:
    """The service on transformers, in this process."""
    settings = ServeConfig.model_validate({"model": str(model), **config})
    recipe = load_recipe(model)
    return ExpandService(settings, recipe, TransformersServing(recipe, settings.engine))


@contextmanager
def client(
    made: ExpandService, keys: tuple[str, ...] = (), searcher: Any = None, address: str = "127.0.0.1"
) -> Iterator[TestClient]:
    """Its HTTP, seen from `address`."""
    app = Guard(make_api(made, searcher), Keys(keys), made.config.limits)
    # Inside `with` all requests share one event loop, which batches need.
    with TestClient(app, client=(address, 50000), raise_server_exceptions=False) as http:
        yield http


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The service behind a real HTTP server: its address."""
    with http_server(app) as url:
        yield url


def run(coroutine: Any) -> Any:
    """Its result."""
    return asyncio.run(coroutine)
