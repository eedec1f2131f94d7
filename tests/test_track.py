"""Trackers are told curves and results of every stage, once, under one run; none of them stops a run or names it."""

import importlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aqe import track
from aqe.artifact import write_parquet, write_text
from aqe.config.pipeline import PipelineConfig, TrackerName, load_config
from aqe.errors import ConfigError, DependencyError
from aqe.run import Run
from aqe.track import PACKAGES, Trackers

ROOT = Path(__file__).parents[1]
CURVE = pa.table({"step": [1, 2, 3], "loss": [0.7, 0.6, 0.5], "kl_per_token": [0.0, None, 0.1]})
MEASURED = {
    "systems": {"rsft_dpo": {"label": "RSFT + DPO", "mrr": {"value": 0.5, "low": 0.4, "high": 0.6}}},
    "differences": {"rsft_dpo_vs_bm25": {"mrr": {"value": 0.1, "low": 0.0, "high": 0.2}}},
}


def needs(name: TrackerName, *more: Any) -> Any:
    """A test's marks: the tracker's own package, from the extra `track`, and `more`."""
    module, package = PACKAGES[name]
    found = importlib.util.find_spec(module) is not None
    there = pytest.mark.skipif(not found, reason=f"{package} is not installed: extra `track`")
    return pytest.param(name, marks=[there, *more])


def configured(runs: Path, *names: TrackerName, beta: float = 0.1) -> PipelineConfig:
    source = {"format": "jsonl", "path": "x.jsonl"}
    return PipelineConfig.model_validate(
        {
            "name": "mine",
            "runs_dir": runs,
            "corpus": source,
            "queries": {split: {**source, "path": f"{split}.jsonl"} for split in ("train", "dev", "test")},
            "align": {"dpo": {"beta": beta}},
            "track": list(names),
        }
    )


def go(config: PipelineConfig, *, whole: bool = True) -> list[str]:
    """A run in small: a stage with counts, one with a curve, and a report. Returns what it said."""
    said: list[str] = []
    run = Run.of(config)
    run = Run(run.root, said.append, trackers=run.trackers)

    def train(out: Path) -> dict[str, Any]:
        write_parquet(CURVE, out / "curves.parquet")
        return {"rows": 40, "phases": {"load": 1.5}, "engine": "vllm", "rate": float("nan")}

    def report(out: Path) -> dict[str, Any]:
        write_text(json.dumps(MEASURED), out / "metrics.json")
        return {"queries": 7}

    with run.trackers:
        run.make("build_preferences", config={}, inputs={}, build=lambda out: {"queries": 20})
        run.make("align_dpo", config={"beta": config.align.dpo.beta}, inputs={}, build=train)
        if whole:
            run.make("report", config={"beta": config.align.dpo.beta}, inputs={}, build=report)
    return said


#: What each tracker has to hold of that: (step, value) of each name.
HELD = {
    "choose_what_to_train_on/queries": [(0, 20.0)],
    "train_DPO/loss": [(1, 0.7), (2, 0.6), (3, 0.5)],
    "train_DPO/kl_per_token": [(1, 0.0), (3, 0.1)],
    "train_DPO/rows": [(3, 40.0)],
    "train_DPO/phases/load": [(3, 1.5)],
    "write_the_report/systems/rsft_dpo/mrr/value": [(0, 0.5)],
    "write_the_report/differences/rsft_dpo_vs_bm25/mrr/low": [(0, 0.0)],
}


def assert_held(held: dict[str, list[tuple[int, float]]]) -> None:
    for name, points in HELD.items():
        assert [step for step, _ in sorted(held[name])] == [step for step, _ in points], name
        assert [value for _, value in sorted(held[name])] == pytest.approx([value for _, value in points]), name
    assert not [name for name in held if "engine" in name or "rate" in name]


def of_tensorboard(root: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Scalars of TensorBoard's event files, by run and name: records of a length, its checksum, an event, another."""
    from tensorboardX.proto.event_pb2 import Event

    runs: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for file in sorted(root.glob("*/events.out.tfevents.*")):
        held, data, at = runs.setdefault(file.parent.name, {}), file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    held.setdefault(value.tag, []).append((event.step, value.simple_value))
    return runs


def of_mlflow(root: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    from mlflow import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(root.absolute().as_uri())
    experiment = client.get_experiment_by_name("aqe")
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(run.data.params["sample.num_samples"] == "50" for run in runs)
    return {
        run.info.run_name: {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        for run in runs
    }


def of_trackio(root: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """As Trackio itself reads it, in a process of its own: it takes its directory when it is imported."""
    program = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as S\n"
        "print('@' + json.dumps({r: S.get_logs('aqe', r) for r in S.get_runs('aqe')}, default=str))"
    )
    env = {**os.environ, "TRACKIO_DIR": str(root)}
    out = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
    runs: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, rows in json.loads(out.partition("@")[2]).items():
        held = runs.setdefault(name, {})
        for row in rows:
            for key, value in row.items():
                if "/" in key:
                    held.setdefault(key, []).append((row["step"], value))
    return runs


def of_wandb(root: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """From the files that `wandb sync` would send; a run that was resumed offline has several."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for file in sorted(root.glob("wandb/offline-run-*/*.wandb")):
        records = [Record.FromString(data) for data in of_leveldb(file.read_bytes())]
        [name] = {record.run.display_name for record in records if record.WhichOneof("record_type") == "run"}
        held = runs.setdefault(name, {})
        for record in records:
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            for key, value in row.items():
                if not key.startswith("_") and not key.endswith("/step"):
                    held.setdefault(key, []).append((row[f"{key.partition('/')[0]}/step"], value))
    return runs


def of_leveldb(data: bytes) -> Iterator[bytes]:
    """Records of a log as LevelDB writes it, after a head of 7 bytes: in blocks, a long one in several pieces."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


READ = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb, "trackio": of_trackio}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_ALLOW_FILE_STORE",
        "WANDB_PROJECT",
        "TRACKIO_PROJECT",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "runs" / "track" / "trackio"))
    yield


def in_its_own_process(config: PipelineConfig, **how: Any) -> list[str]:
    """`go` as runs are: each in a process, in which a tracker's package is imported once."""
    program = (
        "import json, sys\nfrom aqe.config.pipeline import PipelineConfig\nfrom tests.test_track import go\n"
        "config, how = json.loads(sys.argv[1])\n"
        "print('@' + json.dumps(go(PipelineConfig.model_validate(config), **how)))"
    )
    given = json.dumps([config.model_dump(mode="json", exclude_defaults=True), how])
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", program, given], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said: list[str] = json.JSONDecoder().raw_decode(done.stdout.rpartition("@")[2])[0]
    return said


@pytest.mark.parametrize(
    "name", [needs("tensorboard"), *(needs(name, pytest.mark.slow) for name in ("mlflow", "wandb", "trackio"))]
)
def test_a_tracker_holds_curves_and_results_once(name: TrackerName, tmp_path: Path, offline: None) -> None:
    runs, root = tmp_path / "runs", tmp_path / "runs" / "track" / name
    # Stopped before the report, resumed, and started again when all is there.
    for whole in (False, True, True):
        said = in_its_own_process(configured(runs, name), whole=whole)
        assert not [line for line in said if "WARNING" in line]
    [held] = READ[name](root).values()
    assert_held(held)
    # Another setting is another run, which has the stages that it shares with the first one, too.
    in_its_own_process(configured(runs, name, beta=0.3))
    both = READ[name](root)
    assert len(both) == 2
    for held in both.values():
        assert_held(held)


@pytest.mark.parametrize("name", [needs("tensorboard")])
def test_a_run_that_was_tracked_by_nobody_can_be_logged_afterwards(name: TrackerName, tmp_path: Path) -> None:
    before = go(configured(tmp_path))
    said = go(configured(tmp_path, name))
    assert sum("made in" in line for line in before) == 3 and not any("made in" in line for line in said)
    [held] = READ[name](tmp_path / "track" / name).values()
    assert_held(held)


class _Failing:
    id = "x"

    def __init__(self, *args: Any) -> None:
        self.closed: list[bool] = []

    def log(self, step: int, values: Any, at: float) -> None:
        raise OSError("the server is\ngone")

    def close(self, failed: bool) -> None:
        raise OSError("gone")


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    config = configured(tmp_path, "tensorboard")
    monkeypatch.setattr(track, "_OPEN", {"tensorboard": _Failing})
    assert sum("made in" in line for line in go(config)) == 3
    [warning, at_the_end] = capsys.readouterr().out.splitlines()
    assert "tensorboard is not told of this run any more: OSError: the server is gone." in warning
    assert "OSError: gone" in at_the_end
    # And is told of all of it next time.
    monkeypatch.undo()
    pytest.importorskip("tensorboardX")
    go(config)
    [held] = of_tensorboard(tmp_path / "track" / "tensorboard").values()
    assert_held(held)


def test_what_fails_ends_as_failed_in_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    class Noting(_Failing):
        def log(self, step: int, values: Any, at: float) -> None: ...

        def close(self, failed: bool) -> None:
            ended.append(failed)

    monkeypatch.setattr(track, "_OPEN", {"mlflow": Noting})
    config = configured(tmp_path, "mlflow")
    go(config)
    trackers = Run.of(configured(tmp_path, "mlflow", beta=0.2)).trackers
    with pytest.raises(KeyError), trackers:
        Run(tmp_path / "mine", lambda line: None, trackers=trackers).make(
            "x", config={}, inputs={}, build=lambda _: {"n": 1}
        )
        raise KeyError
    assert ended == [False, True]


def test_a_package_that_is_not_there_is_an_error_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"tensorboardX"}
    monkeypatch.setattr(track, "find_spec", lambda module: object() if module in there else None)
    track.check(["tensorboard"])
    with pytest.raises(DependencyError, match="mlflow-skinny, trackio is not installed here"):
        track.check(["tensorboard", "mlflow", "trackio"])


def test_weights_and_biases_needs_a_key_or_to_be_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "find_spec", lambda module: object())
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match="WANDB_MODE=offline"):
        track.check(["wandb"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    track.check(["wandb"])
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    track.check(["wandb"])


def test_trackers_are_no_part_of_a_result_and_cost_nothing_where_none_is_named(tmp_path: Path) -> None:
    """Which artifacts a run makes does not depend on them, nor does importing the platform import them."""
    go(configured(tmp_path / "a"))
    names = {path.name for path in (tmp_path / "a" / "mine").glob("*-*")}
    if importlib.util.find_spec("tensorboardX"):
        go(configured(tmp_path / "b", "tensorboard"))
        assert {path.name for path in (tmp_path / "b" / "mine").glob("*-*")} == names
    assert not (tmp_path / "a" / "track").exists()
    program = "import sys, aqe.track, aqe.run; print([m for m in ('mlflow', 'wandb', 'trackio', 'tensorboardX') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    assert subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout == "[]\n"  # fmt: skip
    assert not Trackers()._names


def test_what_is_compared_is_logged_where_the_command_opened_it(tmp_path: Path) -> None:
    """The command opens and closes the trackers of its pipeline's run: there must be no other run beside it."""
    from aqe.comparison import Comparison
    from aqe.pipeline import Pipeline

    pipeline = Pipeline(load_config("demo", ["evaluate.seeds=2"], tmp_path))
    comparison = Comparison(pipeline)
    assert comparison.run is pipeline.run and all(one.run is pipeline.run for one in comparison.pipelines)
