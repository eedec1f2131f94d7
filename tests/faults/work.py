"""Work that a fault can hit in the middle, and its comparison with a run that nothing disturbed."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from aqe.artifact import MANIFEST, read_parquet
from cluster.local.nodes import Cluster, Kind, Node, cluster
from tests.tools.small_project import SMALL, write_project
from tests.tools.waiting import until

#: Small units and many checkpoints: a fault finds some of the work done and some not.
SETTINGS = (
    *SMALL,
    *("sample.queries_per_unit=1", "rank.queries_per_unit=1"),
    *("align.checkpoint_steps=2", "align.rsft.batch_size=4", "align.dpo.batch_size=4", "align.micro_batch_size=4"),
)
#: What the rows of each stage lie in, from the first that a fault may hit to the last before alignment.
ROWS = {"sample_train": ("data",), "rank_train": ("data",), "build_preferences": ("rsft.parquet", "dpo.parquet")}


@dataclass(frozen=True)
class Work:
    """One job on the small project, `runs` by `runs`: each starts from nothing, or from a copy of another's artifacts."""

    project: Path
    job: str
    settings: tuple[str, ...]

    def runs(self, name: str) -> Path:
        """Where the artifacts of the runs `name` lie."""
        return self.project / name / "mine"

    def begin(self, name: str, whole: str, *without: str) -> Path:
        """Give the runs `name` all artifacts of the runs `whole` but those of stages whose names begin as in `without`."""
        ignored = shutil.ignore_patterns(*(f"{stage}*" for stage in without), ".*.lock")
        shutil.copytree(self.runs(whole), self.runs(name), ignore=ignored)
        return self.runs(name)

    def submit(self, cluster: Cluster, runs: str, name: str | None = None) -> str:
        """`ray job submit` it; returns the submission id, `name` or that of the runs."""
        settings = [option for text in (*self.settings, f"runs_dir={runs}") for option in ("--set", text)]
        options = ("--config", str(self.project / "mine.yaml"), "--base-dir", str(self.project), *settings)
        cluster.submit(self.job, *options, name=name or runs)
        return name or runs

    def succeed(self, cluster: Cluster, runs: str, name: str | None = None) -> Path:
        """Submit it, wait until it has succeeded, return the run's directory."""
        submitted = self.submit(cluster, runs, name)
        assert ended(cluster, submitted) == "SUCCEEDED", log(cluster, submitted)
        return self.runs(runs)


@contextlib.contextmanager
def cluster_of(*kinds: Kind) -> Iterator[tuple[Cluster, list[Node]]]:
    """A head, and one node of one CPU of each of `kinds`."""
    with cluster() as made:
        nodes = [made.launch(kind) for kind in kinds]
        for node in nodes:
            made.joined(node)
        yield made, nodes


def write_work(project: Path, job: str, train: int, *settings: str) -> Work:
    """The small project with `train` queries to align on, and a job on it."""
    write_project(project, train)
    return Work(project, job, (*SETTINGS, *settings))


def say(fault: str, **seconds: float) -> None:
    """What docs/faults.md tells of; `make test-faults` shows it."""
    print(f"\nFAULT {fault}: " + ", ".join(f"{name.replace('_', ' ')} after {s:.0f} s" for name, s in seconds.items()))


def log(cluster: Cluster, submitted: str) -> str:
    """What a job has said."""
    return str(cluster.jobs().get_job_logs(submitted))


def status(cluster: Cluster, submitted: str) -> str:
    """Of a job; "" when a busy head does not answer."""
    with contextlib.suppress(RuntimeError, ConnectionError):
        return str(cluster.jobs().get_job_status(submitted).value)
    return ""


def reach(cluster: Cluster, submitted: str, reached: Callable[[], bool]) -> None:
    """Wait for a moment of a running job. Fails when the job ends before."""
    looked = time.monotonic()

    def now() -> bool:
        nonlocal looked
        if time.monotonic() > looked + 2:
            looked = time.monotonic()
            assert status(cluster, submitted) in ("", "PENDING", "RUNNING"), log(cluster, submitted)
        return reached()

    until(now, lambda: log(cluster, submitted), every=0.02)


def ended(cluster: Cluster, submitted: str) -> str:
    """Wait for a job's end; its status."""
    final = {"SUCCEEDED", "FAILED", "STOPPED"}
    until(lambda: status(cluster, submitted) in final, lambda: log(cluster, submitted), every=0.5)
    return status(cluster, submitted)


def only(root: Path, stage: str) -> Path:
    """The one directory of a stage."""
    (path,) = root.glob(f"{stage}-*")
    return path


def units(root: Path, stage: str) -> int:
    """Finished units of a stage."""
    return len(list(root.glob(f"{stage}-*/data/*.parquet")))


def step(root: Path, stage: str) -> int:
    """Optimiser steps that a stage of alignment has done, 0 before the first checkpoint; the last attempt's counts."""
    if not list(root.glob(f"{stage}-*/checkpoints/*/checkpoint_*")):
        return 0
    for path in root.glob(f"{stage}-*/checkpoints/progress.json"):
        with contextlib.suppress(FileNotFoundError):
            # An attempt that begins says what it is doing; steps come later.
            return int(json.loads(path.read_text()).get("step", 0))
    return 0


def finished(root: Path, stage: str) -> bool:
    """Whether a stage's artifact is complete."""
    return bool(list(root.glob(f"{stage}-*/{MANIFEST}")))


def assert_same(whole: Path, root: Path) -> None:
    """Two runs up to the aligned models ended alike."""
    assert_same_rows(whole, root, *ROWS)
    assert_same_training(whole, root, "align_rsft", "align_rsft_dpo")


def assert_same_rows(whole: Path, root: Path, *stages: str) -> None:
    """The stages' artifacts have the same names and, in the same order, the same rows."""
    for stage in stages:
        one, other = only(whole, stage), only(root, stage)
        assert one.name == other.name
        for name in ROWS[stage]:
            expected, found = (read_parquet(path / name).replace_schema_metadata() for path in (one, other))
            assert found.num_rows > 0
            assert found.equals(expected), (stage, name)
        assert not list(other.rglob("*.part")), "half-written"


def assert_same_training(whole: Path, root: Path, *stages: str) -> None:
    """The same steps, losses and gradients within 1e-6, and the same weights."""
    for stage in stages:
        one, other = only(whole, stage), only(root, stage)
        assert one.name == other.name
        expected, found = (read_parquet(path / "curves.parquet") for path in (one, other))
        assert found["step"].to_pylist() == expected["step"].to_pylist()
        for name in ("loss", "learning_rate", "grad_norm"):
            if name in expected.column_names:
                assert found[name].to_pylist() == pytest.approx(expected[name].to_pylist(), rel=1e-6), (stage, name)
        weights, trained = (load_file(path / "model" / "model.safetensors") for path in (one, other))
        assert weights.keys() == trained.keys()
        for name, weight in weights.items():
            assert trained[name] == pytest.approx(weight, rel=1e-6, abs=1e-7), (stage, name)
