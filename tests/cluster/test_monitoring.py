"""A real Prometheus on a cluster of several nodes while it works: what it saw is what the manifest says, and every panel
can be drawn."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.local.nodes import cluster
from cluster.local.ray_head import Head, free_ports
from cluster.observability.panels import ROWS, WINDOW
from tests.tools import tiny_model
from tests.tools.cluster import ROOT, read
from tests.tools.waiting import until

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus: apt-get install --no-install-recommends prometheus"
)
QUERIES = 320
CONFIG: dict[str, Any] = {
    "name": "watched",
    "corpus": {"format": "jsonl", "path": "corpus.jsonl"},
    "queries": {split: {"format": "jsonl", "path": f"{split}.jsonl"} for split in ("train", "dev", "test")},
    "model": {"source": "model"},
    "engine": {"name": "transformers", "max_model_len": 256},
    "sample": {"prompt": "passage", "num_samples": 20, "max_tokens": 40},
    "models": ["rsft_dpo"],
    "align": {"workers": 1, "max_length": 256, "micro_batch_size": 8},
}
#: Panels that have something to show when a pipeline samples on CPUs, and when it goes on to train.
SAMPLED = {
    *("Tokens generated", "Candidates", "Rows", "Time left", "Done", "Units", "Idle workers", "Dead letters"),
    *("Prompt tokens not computed", "CPU", "Memory", "Object store", "Ray Data"),
}
DRAWN = {
    "sample_expansions": SAMPLED,
    "align_model": {*SAMPLED, "Gold ranks", "Tokens trained on", "Loss", "Reward margin"},
}


@dataclass
class Watched:
    """A run that has ended, and the Prometheus that watched it."""

    job: str
    prometheus: str
    head: Head
    started: float
    seconds: float
    manifest: dict[str, Any]
    log: str
    monitor: str

    def ask(self, query: str, path: str = "query", **more: Any) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/{path}", params={"query": query, **more}).json()
        assert answer["status"] == "success", (query, answer)
        return list(answer["data"]["result"])


def project(here: Path) -> Path:
    """A corpus, queries, a model and their configuration."""
    tiny_model.save(here / "model")
    draw = random.Random(0)
    words = ["".join(draw.choices("bcdefgh", k=3)) for _ in range(30)]
    corpus = [{"docid": f"d{i}", "title": "", "text": " ".join(draw.choices(words, k=12))} for i in range(40)]
    (here / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    for split, count in (("train", QUERIES), ("dev", 4), ("test", 4)):
        rows = [{"qid": f"{split}{i}", "text": f"{split} {i}", "positives": ["d1"]} for i in range(count)]
        (here / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "watched.yaml").write_text(yaml.safe_dump(CONFIG))
    return here / "watched.yaml"


@contextmanager
def scraping(head: Head, port: int) -> Iterator[str]:
    """The address of a Prometheus with the committed configuration, faster and on this head's list of nodes."""
    config = read("cluster/observability/prometheus.yaml")
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "cluster" / "observability" / "alerts.yaml")]
    (nodes,) = (job for job in config["scrape_configs"] if job["job_name"] == "ray")
    (discovery,) = nodes["file_sd_configs"]
    (file,) = discovery["files"]
    discovery |= {"files": [str(head.directory / Path(file).relative_to("/tmp"))], "refresh_interval": "1s"}
    (head.directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    # Debian's default is one directory for the machine, with what earlier ones saw.
    options = [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.path=tsdb"]
    command = ["prometheus", "--config.file=prometheus.yaml", *options]
    with (head.directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, cwd=head.directory, stderr=log)
        try:
            until(lambda: httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module", params=["sample_expansions", pytest.param("align_model", marks=pytest.mark.slow)])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    (port,) = free_ports(1)
    env = {"RAY_metrics_report_interval_ms": "1000", "RAY_GRAFANA_DATA_DASHBOARD_UID": "aqe"}
    with (
        tempfile.TemporaryDirectory() as directory,
        cluster("gpu", "cpu", more_env=env) as nodes,
        scraping(nodes.head, port) as url,
    ):
        config = project(Path(directory))
        client = nodes.jobs()
        started = time.time()
        job = client.submit_job(
            entrypoint=f"{sys.executable} jobs/{request.param}.py --config {config} --base-dir {directory}",
            runtime_env={**read("jobs/runtime_env.yaml"), "working_dir": str(ROOT)},
        )
        monitor = subprocess.Popen(
            [sys.executable, "-m", "cluster.observability.monitor"],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": "platform"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            until(lambda: client.get_job_status(job).is_terminal())
            log = client.get_job_logs(job)
            assert client.get_job_status(job) == "SUCCEEDED", log
            (manifest,) = Path(directory).glob("runs/watched/sample_train-*/manifest.json")
            stats = json.loads(manifest.read_text())["stats"]
            made = Watched(request.param, url, nodes.head, started, 0, stats, log, "")
            # A process exports once more when it ends, and the next scrape comes a second later.
            rows = "sum(max_over_time(ray_aqe_rows_total{stage='sample_train'}[1h]))"
            until(lambda: made.ask(rows)[0]["value"][1] == str(QUERIES))
            made.seconds = time.time() - started
        finally:
            monitor.terminate()
            shown = monitor.communicate()[0]
        made.monitor = shown
        yield made


def test_the_increase_is_what_the_manifest_says(watched: Watched) -> None:
    for metric, count in (("generated_tokens", "tokens"), ("candidates", "candidates"), ("rows", "rows_in")):
        over = f"ray_aqe_{metric}_total{{stage='sample_train'}}[{watched.seconds:.0f}s]"
        (increase,) = watched.ask(f"sum(increase({over}))")
        assert float(increase["value"][1]) == pytest.approx(watched.manifest[count], rel=0.1), metric
        # Nothing is lost either: `increase` extrapolates, this does not.
        (last,) = watched.ask(f"sum(max_over_time({over}))")
        assert float(last["value"][1]) == watched.manifest[count]


def test_tokens_a_second_are_those_of_the_manifest(watched: Watched) -> None:
    stage, over = "{stage='sample_train'}", f"[{watched.seconds:.0f}s:1s]"
    # What the counters, which begin at 0, rose to: `increase` would add what it extrapolates.
    (made,) = watched.ask(f"sum(max_over_time(ray_aqe_generated_tokens_total{stage}[{watched.seconds:.0f}s]))")
    # A stage exports how much is left as long as it runs; Ray repeats the last value, 0, for two exports.
    (ran,) = watched.ask(f"count_over_time((sum(ray_aqe_stage_units_left{stage}) > 0){over})")
    rate = float(made["value"][1]) / float(ran["value"][1])
    assert rate == pytest.approx(watched.manifest["tokens_per_second"], rel=0.1)


def test_every_panel_is_drawn(watched: Watched) -> None:
    drawn = set()
    for panels in ROWS.values():
        for panel in panels:
            for expression, _ in panel.series:
                found = watched.ask(
                    expression.replace(WINDOW, "10s"), "query_range",
                    start=watched.started, end=watched.started + watched.seconds, step=1,
                )  # fmt: skip
                if any(value != "NaN" for series in found for _, value in series["values"]):
                    drawn.add(panel.title)
    assert drawn >= DRAWN[watched.job], DRAWN[watched.job] - drawn


def test_the_idle_share_is_that_of_the_manifest(watched: Watched) -> None:
    stats = watched.manifest
    over = f"ray_aqe_worker_busy{{stage='sample_train'}}[{watched.seconds:.0f}s:1s]"
    (busy,) = watched.ask(f"sum(sum_over_time({over}))")
    # A look each second, and what it sees is as old as an export at most.
    assert float(busy["value"][1]) == pytest.approx(stats["busy_seconds"], abs=4 * stats["workers"])


def test_the_jobs_log_says_one_line_each_ten_seconds(watched: Watched) -> None:
    lines = watched.log.splitlines()
    said = [line for line in lines if re.match(r"draw \d+ candidates for train .*: ", line) and "queries/s" in line]
    assert 1 <= len(said) <= 2 + watched.manifest["wall_seconds"] / 10
    assert re.fullmatch(r"draw .*: 320/320 queries \(100 %\), .* tokens/s, took [\d:]+", said[-1])
    assert all(re.search(r"[\d.]+ queries/s, .* (ETA|took) [\d:]+$", line) for line in said)
    assert len(lines) < 25 + watched.seconds / 2, watched.log


def test_the_monitor_shows_the_stage_that_runs(watched: Watched) -> None:
    rows = [line.split() for line in watched.monitor.splitlines() if "sample_train" in line]
    # Tokens and candidates a second, the last columns of a stage that samples.
    assert any(row[-2] > "0.0" and row[-1] > "0.0" for row in rows if row[-1][-2:-1] == "."), watched.monitor


def test_rays_own_tab_is_given_to_our_dashboard(watched: Watched) -> None:
    grafana = watched.head.directory / "ray" / "session_latest" / "metrics" / "grafana"
    assert json.loads((grafana / "dashboards" / "data_grafana_dashboard.json").read_text())["uid"] == "aqe"
    assert (grafana / "grafana.ini").exists()
