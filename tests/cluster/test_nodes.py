"""Several real Ray nodes: each stage on the kind of node that is its own, a token asked for, nodes that die."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from aqe.align.stage import worker_count
from aqe.artifact import Artifact
from aqe.config.align import AlignConfig
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.config.sample import EngineConfig
from aqe.errors import DependencyError
from aqe.nodes import Nodes, choose
from aqe.rank.retriever import Retriever
from aqe.sample.stage import engine_pool
from cluster.local.nodes import Cluster, cluster
from tests.tools.small_project import ROOT, SMALL, write_project
from tests.tools.waiting import until

#: Which actors and tasks of the loop run where; stages' actors have the stages' names.
ALIGN = {
    "gpu": {"RayTrainWorker", "export_model"},
    "cpu": {
        "build_index",
        "build_impacts",
        "make_shard",
        "_match_shards",
        "rank_train",
        "_read_part",
        "write_queries",
        "build_preferences",
        "gather",
    },
}
#: `rank.spread_shards`: each starts a process, which takes a while.
SPREAD = {"cpu": {"_Shard"}}
#: What asks the base model, and its own pool where one job asks it for candidates alone.
SAMPLE, ASK = {"gpu": {"sample_train"}}, {"gpu": {"ask_base"}}
#: One pool searches for all systems.
EVALUATE = {"gpu": {"expand_test_rsft"}, "cpu": {"search", "rank_dev_prompts", "rank_dev_cuts", "rank_test"}}


def node(pool: str | None, alive: bool = True, **resources: float) -> dict[str, Any]:
    """As in `ray.nodes()`."""
    return {"Alive": alive, "Labels": {"pool": pool} if pool else {}, "Resources": resources}


def retriever(**settings: Any) -> Retriever:
    return Retriever(Artifact(Path(), {}), RankConfig(**settings), IndexConfig())


def test_without_labels_nothing_is_asked_for() -> None:
    laptop = [node(None, CPU=8.0, GPU=1.0)]
    for kind in ("gpu", "cpu"):
        assert choose(kind, laptop, grows=False) == Nodes((8,), 1, {})


def test_a_kind_is_its_own_living_nodes() -> None:
    there = [
        *(node("head"), node("gpu", CPU=4.0, GPU=1.0), node("gpu", CPU=4.0, GPU=2.0)),
        *(node("cpu", CPU=32.0), node("cpu", CPU=16.0), node("cpu", alive=False, CPU=64.0), node(None, CPU=2.0)),
    ]
    gpu, cpu = choose("gpu", there, grows=False), choose("cpu", there, grows=False)
    assert gpu == Nodes((4, 4), 3, {"pool": "gpu"})
    assert cpu == Nodes((32, 16), 0, {"pool": "cpu"})
    pools = [engine_pool(EngineConfig(), gpu), retriever().pool(cpu)]
    assert [(pool.size, pool.num_gpus, pool.labels) for pool in pools] == [
        (3, 1, {"pool": "gpu"}),
        (48, 0, {"pool": "cpu"}),
    ]
    assert retriever(workers=100).pool(cpu).size == 100


def test_without_gpus_one_samples_on_the_cpus_of_nodes_labelled_gpu() -> None:
    nodes = choose("gpu", [node("head"), node("gpu", CPU=2.0), node("cpu", CPU=32.0)], grows=False)
    assert engine_pool(EngineConfig(), nodes).size == 2
    assert worker_count("rsft", AlignConfig(), nodes) == 1


@pytest.mark.parametrize("there", [[node("head"), node("gpu", CPU=4.0)], [node("cpu", CPU=0.0)], [node(None)]])
def test_a_kind_that_is_missing_is_an_error_unless_it_can_be_brought(there: list[dict[str, Any]]) -> None:
    with pytest.raises(
        DependencyError, match="reading, indexing, judging, ranking and preferences need a node with CPUs"
    ):
        choose("cpu", there, grows=False)
    assert choose("cpu", there, grows=True).cpus == (1,)


def test_training_waits_for_workers_only_where_they_can_come() -> None:
    config = AlignConfig(workers=4)
    with pytest.raises(DependencyError, match="has 2 GPUs of nodes labelled pool=gpu"):
        worker_count("rsft", config, Nodes((4, 4), 2, {"pool": "gpu"}))
    assert worker_count("rsft", config, Nodes((4, 4), 2, {"pool": "gpu"}, grows=True)) == 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small project; its training queries are judged by answers, which takes Ray tasks."""
    here = tmp_path_factory.mktemp("nodes")
    write_project(here)
    corpus = {row["docid"]: row["text"] for row in map(json.loads, (here / "corpus.jsonl").read_text().splitlines())}
    rows = list(map(json.loads, (here / "train.jsonl").read_text().splitlines()))
    for row in rows:
        [docid] = row.pop("positives")
        row["answers"] = [" ".join(corpus[docid].split()[:3])]
    (here / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return here


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster("gpu", "cpu") as made:
        yield made


def run(nodes: Cluster, job: str, project: Path, name: str, *more: str) -> tuple[str, str]:
    """How a job ended, and what it said."""
    settings = (*SMALL, "models=[rsft]", "align.stages=[rsft]", "evaluate.cut_words=[1]", *more)
    options = [option for one in settings for option in ("--set", one)]
    nodes.submit(job, "--config", str(project / "mine.yaml"), "--base-dir", str(project), *options, name=name)
    client = nodes.jobs()
    until(lambda: client.get_job_status(name).is_terminal(), every=0.5)
    return client.get_job_status(name), client.get_job_logs(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "parts"), [("align_model", [ALIGN, SAMPLE]), ("run_pipeline", [ALIGN, ASK, SPREAD, EVALUATE])]
)
def test_every_stage_runs_on_its_kind_of_node(
    nodes: Cluster, project: Path, job: str, parts: list[dict[str, set[str]]]
) -> None:
    more = (f"runs_dir={job}", "index.passages_per_shard=40", f"rank.spread_shards={SPREAD in parts}")
    status, said = run(nodes, job, project, job, *more)
    assert status == "SUCCEEDED", said[-4000:]
    pool = {one.node_id: one.labels["pool"] for one in nodes.state("nodes")}
    work = [(actor.class_name, actor.node_id) for actor in nodes.state("actors")]
    work += [(task.name, task.node_id) for task in nodes.state("tasks") if task.type == "NORMAL_TASK"]
    # Ray Data says MapWorker(MapBatches(rank_train)).
    found = {(re.sub(r"\w+\(|\)", "", name), pool[where]) for name, where in work}
    ours = {name for part in parts for names in part.values() for name in names}
    expected = {(name, kind) for part in parts for kind, names in part.items() for name in names}
    assert {(name, where) for name, where in found if name in ours} == expected


def test_a_wrong_token_is_refused(nodes: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    for headers, code in ((nodes.head.headers, 200), ({}, 401), ({"Authorization": f"Bearer {'0' * 64}"}, 403)):
        assert httpx.get(f"{nodes.head.address}/api/jobs/", headers=headers).status_code == code
    # Not the dashboard alone: the port that listens on all addresses, too.
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "status", "--address", nodes.head.gcs],
        env={**nodes.head.env, "RAY_AUTH_TOKEN_PATH": str(wrong)},
        capture_output=True,
        text=True,
    )
    assert done.returncode and "Authentication token is missing or incorrect" in done.stdout + done.stderr


def test_a_killed_node_is_missed_and_another_takes_its_place(nodes: Cluster, project: Path) -> None:
    def alive() -> set[str]:
        return {one.node_name for one in nodes.state("nodes") if one.state == "ALIVE"}

    assert alive() == {"head", "gpu-1", "cpu-1"}
    lost = next(one for one in nodes.nodes if one.name == "cpu-1")
    nodes.kill(lost)
    assert not working_in(lost.directory) and working_in(nodes.head.directory)
    until(lambda: alive() == {"head", "gpu-1"})
    # Ray would wait for ever.
    status, said = run(nodes, "build_index", project, "alone", "runs_dir=alone")
    assert status == "FAILED"
    assert (
        "need a node with CPUs and the label pool=cpu" in said and "Nodes that are up: 1 pool=gpu, 1 pool=head" in said
    )
    nodes.add("cpu")
    assert alive() == {"head", "gpu-1", "cpu-2"}


def working_in(directory: Path) -> list[psutil.Process]:
    """Processes that were told of a directory or write in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = f"{directory}/" in " ".join(process.cmdline())
            if told or any(f.path.startswith(f"{directory}/") and f.mode != "r" for f in process.open_files()):
                found.append(process)
    return found


def test_down_stops_what_up_started_and_nothing_else(nodes: Cluster, tmp_path: Path) -> None:
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "platform")}

    def make(command: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "cluster.local.nodes", command]
        return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

    up = make("up")
    try:
        assert up.returncode == 0, up.stderr
        directory = Path(json.loads((tmp_path / "aqe" / "cluster.json").read_text())["directory"])
        assert (directory / "token").stat().st_mode & 0o777 == 0o600
        assert f"RAY_AUTH_TOKEN_PATH={directory}/token" in up.stdout and "ray job submit --working-dir ." in up.stdout
        assert make("up").returncode == 1
        for name in ("head", "gpu-1", "cpu-1", "cpu-2"):
            assert working_in(directory / name), name
        # A node without its raylet leaves workers behind; somebody reads a log.
        [raylet] = [p for p in working_in(directory / "cpu-1") if p.name() == "raylet"]
        raylet.kill()
        with (directory / "head" / "ray.log").open() as log:
            reader = subprocess.Popen(["sleep", "600"], stdin=log)
    finally:
        down = make("down")
    assert (down.returncode, down.stdout) == (0, "The cluster is down.\n")
    assert not directory.exists() and not working_in(directory)
    assert reader.poll() is None and working_in(nodes.directory)
    reader.kill()
    reader.wait()
    assert make("down").stdout == "No cluster is up.\n"
