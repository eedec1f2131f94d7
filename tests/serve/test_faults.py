"""The service as it is deployed: HAProxy, two replicas with vLLM, load; things are killed and swapped meanwhile."""

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from aqe.config.sample import EngineConfig
from aqe.sample.engine_vllm import vllm_env
from cluster.local.ray_head import Head, free_ports, ray_head
from cluster.local.serve import ROOT, deployment, proxy_env
from cluster.observability.monitor import DISCOVERY
from tests.tools.serve import aligned
from tests.tools.waiting import until

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
ENGINE = {"name": "vllm", "dtype": "float32", "max_model_len": 128, "max_batch": 16, "kv_cache_gib": 1}
#: vLLM's attention on CPUs has no heads below 32.
SIZE = {"hidden_size": 128}
SCRIPT = """
import json, sys
from aqe.config.sample import EngineConfig
from aqe.expand.expander import Expander
model, engine, queries = json.loads(sys.argv[1])
expander = Expander.load(model, engine=EngineConfig(**engine))
print("\\n" + json.dumps([expander.expand(query).composed for query in queries]))
"""


@dataclass
class Service:
    """A deployed application and its head."""

    head: Head
    config: dict[str, Any]
    url: str

    def deploy(self, model: Path, model_id: str) -> None:
        """`serve deploy` of a model."""
        self.config["applications"][0]["args"] |= {"model": str(model), "model_id": model_id}
        file = self.head.directory / "deploy.yaml"
        file.write_text(yaml.safe_dump(self.config))
        command = [str(Path(sys.executable).parent / "serve"), "deploy", str(file), "-a", self.head.address]
        done = subprocess.run(command, env=self.head.env, cwd=self.head.directory, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of this head whose title begins so."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.info["cmdline"] or ())
                if title.startswith(name) and process.environ().get("RAY_TMPDIR", str(self.head.directory)) == str(
                    self.head.directory
                ):
                    found.append(process)
        return found


@dataclass
class Load:
    """Clients that ask all the time, each once more when there was no answer; what became of their requests."""

    url: str
    clients: int = 6
    answers: Counter[str] = field(default_factory=Counter)
    retried: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    async def _client(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            i = 0
            while not self._stop.is_set():
                i += 1
                body = {"query": f"client {number} query {i}"}
                for attempt in range(2):
                    try:
                        answer = await http.post("/v1/expand", json=body)
                        problem = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"
                    except httpx.HTTPError as error:
                        problem = repr(error)
                    if not problem:
                        self.answers[answer.json()["model"]] += 1
                        break
                    (self.lost if attempt else self.retried).append(problem)
                    await asyncio.sleep(1)  # As Retry-After says.

    @contextlib.contextmanager
    def running(self) -> Iterator["Load"]:
        async def clients() -> None:
            await asyncio.gather(*(self._client(n) for n in range(self.clients)))

        thread = threading.Thread(target=lambda: asyncio.run(clients()))
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    model = aligned(tmp_path_factory.mktemp("first"), **SIZE)
    config = deployment(None)
    (port,) = free_ports(1)
    config["http_options"]["port"] = port
    app = config["applications"][0]
    app["args"] |= {"engine": ENGINE, "cache": {"size": 0}}
    app["deployments"][0] |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.25}, "health_check_period_s": 1}
    app["runtime_env"] = {"working_dir": f"local://{ROOT}", "env_vars": {"PYTHONPATH": "platform"}}
    # A replica that ends waits so long for proxies that have not heard of it; by default half a minute.
    with ray_head(proxy_env() | {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5"}) as head:
        service = Service(head, config, f"http://127.0.0.1:{port}")
        service.deploy(model, "first")
        until(lambda: httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200)
        until(lambda: len(service.processes("VLLM::EngineCore")) == 2)
        yield service


def test_one_after_another_is_token_for_token_as_offline(served: Service) -> None:
    queries = [f"what is number {i}?" for i in range(12)]
    model = served.config["applications"][0]["args"]["model"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([model, ENGINE, queries])],
        env=os.environ | {"PYTHONPATH": "platform"} | vllm_env(EngineConfig.model_validate(ENGINE), use_gpu=False),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with httpx.Client(base_url=served.url, timeout=60) as http:
        answers = [http.post("/v1/expand", json={"query": query}).json() for query in queries]
    assert [answer["composed"] for answer in answers] == json.loads(done.stdout.splitlines()[-1])


def test_no_process_spins_for_another_one_that_computes(served: Service) -> None:
    assert len(served.processes("VLLM::")) == len(served.processes("VLLM::EngineCore"))


def test_expansions_stream_piece_by_piece(served: Service) -> None:
    body = {"query": "a query that streams", "stream": True, "max_tokens": 20}
    with httpx.stream("POST", f"{served.url}/v1/expand", json=body, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("event")]
    assert lines.count("event: token") > 2 and lines[-1] == "event: done"


def test_vllms_own_metrics_stand_beside_ours(served: Service) -> None:
    httpx.post(f"{served.url}/v1/expand", json={"query": "a query that is counted"}, timeout=60).raise_for_status()
    asked = {"ray_vllm_generation_tokens_total", "ray_vllm_prompt_tokens_total", "ray_aqe_generated_tokens_total"}
    discovery = served.head.directory / "ray" / DISCOVERY

    def counted() -> set[str]:
        found = set()
        for target in [target for group in json.loads(discovery.read_text()) for target in group["targets"]]:
            # A head without an autoscaler lists the address of one all the same.
            with contextlib.suppress(httpx.ConnectError):
                families = text_string_to_metric_families(httpx.get(f"http://{target}/metrics").text)
                found |= {sample.name for family in families for sample in family.samples if sample.value > 0}
        return found

    until(lambda: asked <= counted(), lambda: f"missing: {asked - counted()}", every=1)


@pytest.mark.slow  # The next test ends a replica too.
def test_a_killed_replica_loses_no_request(served: Service) -> None:
    with Load(served.url).running() as load:
        until(lambda: sum(load.answers.values()) > 20)
        replica = served.processes("ray::ServeReplica:aqe:Expander")[0]
        replica.kill()
        before = sum(load.answers.values())
        until(lambda: sum(load.answers.values()) > before + 50)
        until(lambda: len(served.processes("VLLM::EngineCore")) == 2)
    assert not load.lost, (load.lost, load.retried)


def test_a_killed_engine_heals_by_itself(served: Service) -> None:
    until(lambda: len(served.processes("VLLM::EngineCore")) == 2)
    with Load(served.url).running() as load:
        until(lambda: sum(load.answers.values()) > 20)
        engine = served.processes("VLLM::EngineCore")[0]
        engine.kill()
        until(lambda: engine.pid not in [p.pid for p in served.processes("VLLM::EngineCore")])
        until(lambda: len(served.processes("VLLM::EngineCore")) == 2)
        before = sum(load.answers.values())
        until(lambda: sum(load.answers.values()) > before + 50)
    assert not load.lost, (load.lost, load.retried)


def test_another_model_without_downtime(served: Service, tmp_path: Path) -> None:
    until(lambda: len(served.processes("VLLM::EngineCore")) == 2)
    with Load(served.url).running() as load:
        until(lambda: load.answers["first"] > 20)
        served.deploy(aligned(tmp_path, **SIZE), "second")
        until(lambda: load.answers["second"] > 0)
        until(lambda: len(served.processes("ray::ServeReplica:aqe:Expander")) == 2)
        first = load.answers["first"]
        before = load.answers["second"]
        until(lambda: load.answers["second"] > before + 50)
        assert load.answers["first"] <= first + load.clients
    assert not load.lost and not load.retried
