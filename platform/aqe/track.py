"""Curves and results of every stage in the trackers that people have: TensorBoard, MLflow, Weights & Biases, Trackio.

A tracker is told when a stage ends, by the process that drives the run, from the artifact that the stage left: so it
works alike on one machine and on a cluster, and a run that was tracked by nobody can be logged afterwards. One
configuration is one run of a tracker. What was logged is noted: a run that resumes logs only what is new.
"""

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from aqe.artifact import Artifact, digest, read_parquet, write_text
from aqe.config.pipeline import PipelineConfig, TrackerName
from aqe.errors import ConfigError, DependencyError
from aqe.observe.progress import say

#: The module that each needs, and what brings it.
PACKAGES: Mapping[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
}
#: Where runs are gathered in MLflow, Weights & Biases and Trackio, unless their own variables name another place.
PROJECT = "aqe"
#: Settings that are about neither the data nor the result.
_APART = {"runs_dir", "track", "price_per_hour", "max_dead_share"}
#: Nothing about the use of a package is reported to those who make it.
_SILENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GIT_PYTHON_REFRESH": "quiet",
}
#: Longer values of a setting are cut: a prompt spelled out would not fit everywhere.
_LONGEST = 500
#: MLflow takes at most so many values at once, and 100 settings.
_AT_ONCE, _SETTINGS_AT_ONCE = 1_000, 100


def check(names: Sequence[TrackerName]) -> None:
    """DependencyError where a package is not installed; ConfigError where Weights & Biases has no key."""
    if missing := [PACKAGES[name][1] for name in names if find_spec(PACKAGES[name][0]) is None]:
        raise DependencyError(
            f"track: {', '.join(missing)} is not installed here. pip install {' '.join(missing)}, or leave it out of "
            "`track`."
        )
    if "wandb" in names and not (os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY") or _logged_in()):
        raise ConfigError(
            "track: wandb has no key for its server. Run `wandb login`, or set WANDB_MODE=offline to keep the run here "
            "(`wandb sync` sends it later)."
        )


def _logged_in() -> bool:
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return file.exists() and "wandb" in file.read_text(errors="replace")


class Tracker(Protocol):
    """One run in a tracker."""

    id: str
    """By which the tracker finds the run again."""

    def log(self, step: int, values: Mapping[str, float], at: float) -> None:
        """Values of one stage at one step; `at` is when the stage ended, in seconds since 1970."""

    def close(self, failed: bool) -> None:
        """The run has ended, or stopped."""


class TensorBoard:
    """Event files in `directory`/NAME."""

    def __init__(self, directory: Path, name: str, run_id: str | None, settings: Mapping[str, str]) -> None:
        from tensorboardX import SummaryWriter

        self.id = run_id or name
        self._writer = SummaryWriter(str(directory / name))
        if run_id is None:
            rows = "".join(f"| {key} | {value} |\n" for key, value in settings.items())
            self._writer.add_text("configuration", f"| setting | value |\n|---|---|\n{rows}")

    def log(self, step: int, values: Mapping[str, float], at: float) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step, walltime=at)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """A run on the server that MLFLOW_TRACKING_URI names, else in MLflow's own files below `directory`."""

    def __init__(self, directory: Path, name: str, run_id: str | None, settings: Mapping[str, str]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow adds nothing to its file store any more, but writes it. A database needs far more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(uri or directory.absolute().as_uri())
        if run_id is not None:
            self.id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        there = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if there is None else there.experiment_id
        self.id = str(self._client.create_run(experiment, run_name=name).info.run_id)
        params = [Param(key, value) for key, value in settings.items()]
        for start in range(0, len(params), _SETTINGS_AT_ONCE):
            self._client.log_batch(self.id, params=params[start : start + _SETTINGS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float], at: float) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, value, int(at * 1000), step) for key, value in values.items()]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self.id, metrics=metrics[start : start + _AT_ONCE])

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class WeightsAndBiases:
    """A run of Weights & Biases; WANDB_MODE, WANDB_PROJECT and its other variables hold. Its files lie in `directory`.

    Each stage counts its own steps: the tracker's are for what comes in one order.
    """

    def __init__(self, directory: Path, name: str, run_id: str | None, settings: Mapping[str, str]) -> None:
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        self.id = run_id or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            name=name,
            dir=str(directory),
            config=dict(settings),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._known: set[str] = set()

    def log(self, step: int, values: Mapping[str, float], at: float) -> None:
        stage = next(iter(values)).partition("/")[0]
        if stage not in self._known:
            self._known.add(stage)
            self._run.define_metric(f"{stage}/step", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step, **values})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, in TRACKIO_DIR, else below `directory`."""

    def __init__(self, directory: Path, name: str, run_id: str | None, settings: Mapping[str, str]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(directory))
        import trackio

        self.id = name
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(
            project=project, name=name, config=dict(settings), resume="allow", embed=False, auto_log_gpu=False
        )

    def log(self, step: int, values: Mapping[str, float], at: float) -> None:
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish()


_OPEN: Mapping[TrackerName, Callable[[Path, str, str | None, Mapping[str, str]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


class Trackers:
    """The trackers of one run. A context: when it is left, the run has ended in each of them.

    They never stop a run: one that fails is left alone until the run is started again, and is told then.
    """

    def __init__(self, root: Path | None = None, name: str = "", settings: Mapping[str, str] | None = None) -> None:
        self._root, self._name, self._settings = root or Path(), name, settings or {}
        self._names: list[TrackerName] = []
        self._opened: dict[TrackerName, Tracker] = {}

    @classmethod
    def of(cls, config: PipelineConfig) -> "Trackers":
        """Those that a configuration names, in `runs_dir`/track. One with other settings is another run there."""
        tree = config.model_dump(mode="json", exclude=_APART)
        settings = {key: str(value)[:_LONGEST] for key, value in _leaves(tree)}
        trackers = cls(config.runs_dir / "track", f"{config.name}-{digest(tree)[:8]}", settings)
        trackers._names = list(dict.fromkeys(config.track))
        return trackers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in list(self._opened.items()):
            self._safely(name, partial(tracker.close, kind is not None))
        self._opened.clear()

    def log(self, title: str, artifact: Artifact) -> None:
        """What a stage left, in each tracker that has not been told of it; `title` is what people call the stage."""
        for name in list(self._names):
            self._safely(name, partial(self._log, name, title, artifact))

    def _safely(self, name: TrackerName, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:
            self._names = [other for other in self._names if other != name]
            said = " ".join(str(error).split())[:300]
            say(
                f"WARNING: {name} is not told of this run any more: {type(error).__name__}: {said}. The run goes on. "
                "When it is started again, what is missing is logged."
            )

    def _log(self, name: TrackerName, title: str, artifact: Artifact) -> None:
        note = self._root / name / f"{self._name}.json"
        noted = json.loads(note.read_text()) if note.exists() else {"id": None, "logged": []}
        if artifact.path.name in noted["logged"]:
            return
        if name not in self._opened:
            for variable, value in _SILENT.items():
                os.environ.setdefault(variable, value)
            tracker = _OPEN[name](self._root / name, self._name, noted["id"], self._settings)
            self._opened[name] = tracker
            # At once: a run that dies before its first stage is logged is found again, too.
            _note(note, tracker, noted["logged"])
        tracker = self._opened[name]
        at = datetime.fromisoformat(str(artifact.manifest["created"])).timestamp()
        for step, values in told(title, artifact):
            tracker.log(step, values, at)
        _note(note, tracker, [*noted["logged"], artifact.path.name])


def _note(note: Path, tracker: Tracker, logged: Sequence[str]) -> None:
    """How the tracker finds its run again, and the artifacts that it was told of."""
    write_text(json.dumps({"id": tracker.id, "logged": logged}, indent=1) + "\n", note)


def told(title: str, artifact: Artifact) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, values by name) of what a stage left: its curve, then its statistics, a report's measures among them.

    Names are `stage/value`; a stage is its title in letters, digits and `_`, which every tracker takes.
    """
    stage = re.sub(r"\W+", "_", title.replace("'", "")).strip("_")
    curves = artifact.path / "curves.parquet"
    last = 0
    if curves.exists():
        for row in read_parquet(curves).to_pylist():
            last = int(row.pop("step"))
            if values := _numbers(row):
                yield last, {f"{stage}/{key}": value for key, value in values.items()}
    results = _numbers(artifact.stats)
    measured = artifact.path / "metrics.json"
    if measured.exists():
        metrics = json.loads(measured.read_text())
        results |= _numbers({"systems": metrics["systems"], "differences": metrics["differences"]})
    if results:
        yield last, {f"{stage}/{key}": value for key, value in results.items()}


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of nested values, each by its path, in characters that every tracker takes."""
    kept = {
        re.sub(r"[^\w./ -]", "_", key): float(value)
        for key, value in _leaves(tree, "/")
        if isinstance(value, int | float) and math.isfinite(value)
    }
    return kept


def _leaves(tree: Mapping[str, Any], mark: str = ".", before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, mark, f"{before}{key}{mark}")
        else:
            yield f"{before}{key}", value
