"""The application on Ray Serve's own proxy with the transformers engine, and what it refuses to do."""

import time
from pathlib import Path

import httpx
import pytest

from aqe.config.serve import ServeConfig
from aqe.errors import ConfigError
from aqe.expand.expander import Expander
from aqe.observe import metrics
from cluster.local.ray_head import free_ports
from serve.app import build
from tests.tools.cluster import exported
from tests.tools.serve import KEY, aligned
from tests.tools.waiting import until

#: What a service that has answered and refused exports.
EXPORTED = (
    *(metrics.REQUESTS, metrics.ERRORS, metrics.CACHE, metrics.IN_FLIGHT, metrics.GENERATED_TOKENS),
    *(f"{metrics.LATENCY}_bucket", f"{metrics.FIRST_TOKEN}_bucket"),
)


def test_expand_over_http(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    monkeypatch.delenv("AQE_API_KEYS", raising=False)
    model = aligned(tmp_path)
    (port,) = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        config = ServeConfig.model_validate({"model": str(model), "engine": {"name": "transformers"}})
        serve.run(build(config))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            expander = Expander.load(model)
            for query in ("who wrote carmen?", "gold ring"):
                answer = http.post("/v1/expand", json={"query": query})
                assert answer.status_code == 200 and answer.json()["composed"] == expander.expand(query).composed
            assert http.get("/readyz").json() == {"status": "ok"}
            assert http.post("/v1/expand", json={"query": " "}).status_code == 422
            assert http.post("/v1/expand", content=b"x" * 10_000_000).status_code == 413
            assert http.get("/docs").status_code == 200
        idle = time.monotonic()
        # Ray forgets what is not said again within two exports, of a second each here.
        until(lambda: time.monotonic() - idle > 4 and not {f"ray_{name}" for name in EXPORTED} - set(exported()))
    finally:
        serve.shutdown()


def test_no_start_beyond_this_machine_without_keys(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    monkeypatch.delenv("AQE_API_KEYS", raising=False)
    serve.start(http_options={"host": "0.0.0.0", "port": free_ports(1)[0]})
    try:
        with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*no API key"):
            build(ServeConfig())
        (tmp_path / "keys").write_text(KEY)
        build(ServeConfig(keys_file=tmp_path / "keys"))
    finally:
        serve.shutdown()
