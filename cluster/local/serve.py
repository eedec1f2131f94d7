"""Serve the newest aligned model of this machine, or the bundled base model, on http://127.0.0.1:8000.

usage: python -m cluster.local.serve [MODEL]

The deployment is serve/smoke.yaml, with the model and, where its run has made them, the index, the corpus and the test
queries.
"""

import contextlib
import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from aqe.base_model import check_model
from aqe.config.data import ModelConfig
from aqe.exits import RAISED, quietly
from cluster.local.ray_head import Head, free_ports, ray_head

ROOT = Path(__file__).parents[2]
#: Between two looks at what became of the service.
LOOK_SECONDS = 3.0


def newest_model() -> str | None:
    """The model that was aligned last below runs/, RSFT+DPO before the others."""
    manifests = sorted(
        ROOT.glob("runs/*/align_*/manifest.json"), key=lambda p: ("align_rsft_dpo" in str(p), p.stat().st_mtime)
    )
    return str(manifests[-1].parent / "model") if manifests else None


def _manifest(artifact: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    return manifest


def evaluated(run: Path) -> list[Path]:
    """The artifacts that the run's report comes from, the nearest first; without a report all that are complete."""
    if not (run / "report" / "manifest.json").exists():
        complete = run.glob("*-*/manifest.json")
        return [path.parent for path in sorted(complete, key=lambda path: path.stat().st_mtime, reverse=True)]
    artifacts = [(run / "report").resolve()]
    for artifact in artifacts:
        # The list grows while it is walked.
        parents = [run / name for name in _manifest(artifact)["parents"]]
        artifacts += [path for path in parents if path not in artifacts and (path / "manifest.json").exists()]
    return artifacts


def search_args(run: Path) -> dict[str, Any] | None:
    """The argument `search` for the index, BM25 and passages of a run's report; None where it has no impact index."""
    artifacts = evaluated(run)

    def nearest(prefix: str) -> Path | None:
        return next((path for path in artifacts if path.name.startswith(prefix)), None)

    impacts, corpus, queries = nearest("build_impacts-"), nearest("corpus-"), nearest("queries-")
    if impacts is None:
        return None
    searched = next((path for path in artifacts if _as_served(path.name)), None) or nearest("rank_")
    bm25 = {} if searched is None else {name: _manifest(searched)["config"][name] for name in ("k1", "b")}
    args: dict[str, Any] = {
        "impacts": str(impacts),
        "index": {**bm25, "language": _manifest(impacts)["config"]["language"]},
    }
    if corpus:
        args["corpus"] = str(corpus)
    if queries and (queries / "test.parquet").exists():
        args["queries"] = str(queries / "test.parquet")
        args["qrels"] = [str(path) for path in sorted(run.glob("judge_queries-*/qrels.parquet"))]
    return args


def _as_served(artifact: str) -> bool:
    """A search with the BM25 that the model was aligned with: the plain row of a report has the configured one."""
    return artifact.startswith("search_") and not artifact.startswith(("search_bm25-", "search_bm25_rm3-"))


def deployment(model: str | None) -> dict[str, Any]:
    """serve/smoke.yaml with this machine's paths."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve" / "smoke.yaml").read_text())
    app = config["applications"][0]
    app["runtime_env"] = {"working_dir": f"local://{ROOT}", "env_vars": {"PYTHONPATH": "platform"}}
    if model:
        app["args"]["model"] = model
        path = Path(model).absolute()
        if path.is_dir():
            app["args"]["model"] = str(path)  # The replicas work elsewhere.
        if path.is_dir() and (search := search_args(path.parents[1])):
            app["args"]["search"] = search
    if "search" not in app["args"]:
        app["deployments"] = [d for d in app["deployments"] if d["name"] != "Search"]
    return config


def proxy_env() -> dict[str, str]:
    """serve/proxy.env, and ports and files of one's own: HAProxy's defaults would meet another user's."""
    lines = (ROOT / "serve" / "proxy.env").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    metrics, stats = free_ports(2)
    return env | {"RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics), "RAY_SERVE_HAPROXY_STATS_PORT": str(stats)}


def serve_on(head: Head, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """`serve run` of a deployment on a head that was started with `proxy_env`."""
    file = head.directory / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    env = {**head.env, "RAY_ADDRESS": head.gcs}
    return subprocess.Popen([str(Path(sys.executable).parent / "serve"), "run", str(file)], cwd=head.directory, env=env)


def failure(head: Head) -> str | None:
    """Why Serve has given the application up, None while it has not."""
    request = urllib.request.Request(f"{head.address}/api/serve/applications/", headers=head.headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            applications = json.load(answer)["applications"]
    except (OSError, ValueError, KeyError):
        return None  # Serve is not there yet.
    for application in applications.values():
        if application["status"] == "DEPLOY_FAILED":
            said = [deployment["message"] for deployment in application["deployments"].values()]
            return "\n".join([application["message"], *said])
    return None


def follow(head: Head, process: "subprocess.Popen[bytes]") -> int:
    """Exit code of `serve run`; 2 where the application cannot start, for which `serve run` would wait for ever."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(LOOK_SECONDS)
        why = failure(head)
        if why is not None:
            ours = [f"{kind}: {message}" for kind, message in RAISED.findall(why)]
            print(f"The service cannot start. {ours[0] if ours else why}", file=sys.stderr, flush=True)
            process.terminate()
            process.wait()
            return 2


def main() -> int:
    """Exit code of `serve run`; 2 where what is to be served cannot be."""
    with quietly():
        return _main()


def _main() -> int:
    model = sys.argv[1] if len(sys.argv) > 1 else newest_model()
    config = deployment(model)
    check_model(ModelConfig(source=config["applications"][0]["args"]["model"]), "auto")
    host, port = config["http_options"]["host"], config["http_options"]["port"]
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) == 0:
            print(f"Something listens on {host}:{port} already. Stop it first.", file=sys.stderr)
            return 2
    if model is None:
        print("No aligned model below runs/: this is the base model, which nobody has taught to expand (make demo).")
    print(f"Serving {config['applications'][0]['args']['model']} in about a minute: http://{host}:{port} is the page,")
    print(f"http://{host}:{port}/docs the API. Ctrl-C stops it.", flush=True)
    with ray_head(proxy_env()) as head:
        process = serve_on(head, config)
        try:
            return follow(head, process)
        except KeyboardInterrupt:
            return process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
