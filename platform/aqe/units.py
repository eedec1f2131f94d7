"""A pool of Ray actors that works through units, each unit done exactly once however often it is interrupted.

A unit is a name and a slice of files: the actor reads its rows, so that no row passes through the driver. Its result is
one Parquet file, named by the unit and written atomically by the actor that made it: a retried task overwrites its own
file with the same rows, and a rerun skips what is there. Ray Data spreads the units over the pool and restarts actors
that died.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from aqe.artifact import Artifact, parquet_files, verify, write_parquet
from aqe.dead_letters import common, reasons_of
from aqe.errors import ArtifactError, StorageError
from aqe.observe import metrics
from aqe.observe.progress import Progress
from aqe.records import DEAD_LETTERS, table
from aqe.run import Run
from aqe.storage import retry

Row = Mapping[str, Any]

#: Counts that are shown as rates.
RATED = ("tokens", "candidates", "ranks")
#: Quick units are handed out so many at a time: a task costs the driver far more than one more unit in it.
MOST_AT_ONCE = 32
#: But each worker gets so many tasks, or the last one would let the others wait.
TASKS_A_WORKER = 32


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` (without it) of the queries that a stage works through. Names sort in that order."""

    name: str
    start: int
    stop: int
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the files in which earlier stages left what belongs to these queries, by stage."""


@dataclass
class Result:
    """What became of a unit: its rows, those that could not be processed with the reason, and counts to add up."""

    data: pa.Table
    dead: list[tuple[Row, str]] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """Actors and what each of them takes."""

    size: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes that they may run on."""


@dataclass(frozen=True)
class Work:
    """What the actors of a pool do: `make(**args)` once, then `read` each unit and hand its rows to what was made."""

    make: Callable[..., Callable[[Sequence[Row]], Result]]
    args: Mapping[str, Any]
    read: Callable[[Unit], Sequence[Row]]
    """Called in the actor; it may keep files open between calls."""
    schema: pa.Schema
    """Of the results."""
    noun: str = "queries"
    quick: bool = False
    """Units that are soon done, on a small corpus in milliseconds: several are handed out at a time. Progress is seen
    by task; a finished unit is never done again."""
    reads: tuple[Path, ...] = ()
    """Artifacts that `make` and `read` open, or parts of them: each node verifies them before it does."""


def cut_units(rows: int, size: int) -> list[Unit]:
    """Units of `size` of so many rows."""
    starts = range(0, rows, size)
    return [Unit(f"{start:09d}-{min(start + size, rows):09d}", start, min(start + size, rows)) for start in starts]


def at_once(units: int, workers: int) -> int:
    """Quick units of a task."""
    return max(1, min(MOST_AT_ONCE, units // (workers * TASKS_A_WORKER)))


def with_files(units: Sequence[Unit], stage: str, artifact: Artifact) -> list[Unit]:
    """The same units, each with the names of the files in which the units of `artifact` left something of its queries.

    They are sorted by name, and each but the last holds as many queries. ArtifactError when some are missing, or there
    are others: a query would be given another's file.
    """
    size = artifact.stats["queries_per_unit"]
    names = tuple(path.name for path in parquet_files(artifact.path))
    if len(names) != (own := artifact.stats.get("units")):
        raise ArtifactError(
            f"{artifact.path / 'data'} has {len(names)} files where {artifact.stage} made {own}. "
            "Remove the directory and run again: it is made anew."
        )
    return [
        replace(unit, files={**unit.files, stage: names[unit.start // size : -(-unit.stop // size)]}) for unit in units
    ]


def check_complete(stage: str, stats: Mapping[str, Any], artifact: Artifact) -> None:
    """ArtifactError when a stage did not see each query that `artifact` has something of: none goes missing unsaid."""
    expected = artifact.stats["rows_in"] - artifact.stats["dead"]
    if stats["rows_in"] != expected:
        raise ArtifactError(
            f"{stage} saw {stats['rows_in']} of the {expected} queries in {artifact.path}: some of its files are not "
            "those that it was made with. Remove the directory and run again: it is made anew."
        )


class _Actor:
    """Builds the worker once, then maps units to files."""

    def __init__(self, stage: str, out: str, work: Work) -> None:
        self._stage, self._out, self._read, self._schema = stage, Path(out), work.read, work.schema
        metrics.begin(metrics.ROWS, stage=stage)
        metrics.begin(metrics.DEAD_LETTERS, stage=stage)
        metrics.level(metrics.BUSY, 0, stage=stage)
        self._unusable: ArtifactError | StorageError | None = None
        try:
            for path in work.reads:
                verify(path, patient=True)
        except (ArtifactError, StorageError) as error:
            # Told when a unit comes: of an actor that cannot begin Ray Data starts another.
            self._unusable = error
        else:
            self._work = work.make(**work.args)

    def __call__(self, batch: pa.Table) -> pa.Table:
        actor = ray.get_runtime_context().get_actor_id()
        done = []
        for text in batch["unit"].to_pylist():
            done.append({**self._try(Unit(**json.loads(text))), "actor": actor})
            if done[-1]["refused"]:
                # The others would wait for the same storage.
                break
        return pa.Table.from_pylist(done)

    def _try(self, unit: Unit) -> dict[str, Any]:
        try:
            if self._unusable is not None:
                raise self._unusable
            return {**self._one(unit), "refused": "", "broken": False}
        except (ArtifactError, StorageError) as error:
            # As a row: Ray Data makes every error of a worker one of its own, and keeps the text alone.
            none = {"name": unit.name, "queries": 0, "dead": 0, "counts": "{}"}
            return {**none, "refused": str(error), "broken": isinstance(error, ArtifactError)}

    def _one(self, unit: Unit) -> dict[str, Any]:
        file = self._out / "data" / f"{unit.name}.parquet"
        if file.exists():
            # Made by a worker that died before it could say so: what is committed never changes.
            return _counts(file)
        metrics.level(metrics.BUSY, 1, stage=self._stage)
        started = time.perf_counter()
        # Rows that the storage does not give are no dead letters: they are there for the next run.
        rows = retry(self._out / unit.name, partial(self._read, unit), reads=True)
        try:
            result = self._work(rows)
        except Exception as error:
            # One bad unit must not cost the others; the driver stops when there are too many.
            result = Result(self._schema.empty_table(), [(row, f"{type(error).__name__}: {error}") for row in rows])
        metrics.level(metrics.BUSY, 0, stage=self._stage)
        if file.exists():
            # Meanwhile made by a worker of a cluster whose head is gone.
            return _counts(file)
        dead = [
            {"stage": self._stage, "place": row.get("qid"), "reason": why, "row": json.dumps(row, default=str)}
            for row, why in result.dead
        ]
        counts = {**result.counts, "busy_seconds": time.perf_counter() - started}
        metrics.count(metrics.ROWS, len(rows), stage=self._stage)
        letters = self._out / "dead_letters" / f"{unit.name}.parquet"
        letters.unlink(missing_ok=True)
        if dead:
            write_parquet(table(dead, DEAD_LETTERS), letters)
            metrics.count(metrics.DEAD_LETTERS, len(dead), stage=self._stage)
        counts_row = {"name": unit.name, "queries": len(rows), "dead": len(dead), "counts": json.dumps(counts)}
        # The data file comes last: where it is, the unit is done.
        schema = result.data.schema.with_metadata({b"aqe": json.dumps(counts_row).encode()})
        write_parquet(result.data.cast(schema), file)
        return counts_row


def _counts(file: Path) -> dict[str, Any]:
    """What a finished unit said of itself."""
    counts: dict[str, Any] = json.loads(pq.read_schema(file).metadata[b"aqe"])
    return counts


class _Total:
    """Sums over finished units."""

    def __init__(self) -> None:
        self.queries = self.dead = 0
        self.counts: Counter[str] = Counter()

    def add(self, done: Mapping[str, Any]) -> dict[str, float]:
        """Add what a unit said of itself; returns its counts."""
        counts: dict[str, float] = json.loads(done["counts"])
        self.queries += done["queries"]
        self.dead += done["dead"]
        self.counts.update(counts)  # type: ignore[arg-type]
        return counts


def _done(out: Path, units: Sequence[Unit], total: _Total) -> set[str]:
    """Names of finished units; what they counted is added to `total`.

    Units with dead letters are tried again; files of units that were cut otherwise are removed, or their rows would be
    there twice.
    """
    names = {unit.name for unit in units}
    finished = set()
    for path in sorted((out / "data").glob("*.parquet")):
        counts = _counts(path)
        if counts["dead"] or path.stem not in names:
            (out / "dead_letters" / path.name).unlink(missing_ok=True)
            path.unlink()
        else:
            total.add(counts)
            finished.add(path.stem)
    return finished


def run_units(run: Run, stage: str, out: Path, units: Sequence[Unit], work: Work, pool: Pool) -> dict[str, Any]:
    """Work through `units` with a pool of actors; results in `out`/data/*.parquet. Needs a connection to Ray.

    Returns counts and rates. Raises DeadLetterError when more than `run.max_dead_share` of the rows could not be
    processed: as soon as that is certain, keeping the finished units for a rerun. StorageError when the storage refuses
    a result for long. ArtifactError when what a node is to read is not as it was made.
    """
    total = _Total()
    finished = _done(out, units, total)
    todo = [unit for unit in units if unit.name not in finished]
    queries = sum(unit.stop - unit.start for unit in units)
    already = queries - sum(unit.stop - unit.start for unit in todo)
    progress = Progress(stage, queries, work.noun, run.say, already=already)
    busy_before = total.counts["busy_seconds"]
    actors: set[str] = set()
    if todo:
        sizes = {unit.name: unit.stop - unit.start for unit in todo}
        with progress:
            metrics.level(metrics.UNITS_LEFT, len(todo), stage=stage)
            for number, done in enumerate(_execute(stage, out, todo, work, pool), 1):
                if done["refused"]:
                    raise (ArtifactError if done["broken"] else StorageError)(done["refused"])
                counts = total.add(done)
                actors.add(done["actor"])
                metrics.level(metrics.UNITS_LEFT, len(todo) - number, stage=stage)
                progress.update(sizes[done["name"]], **{k: v for k, v in counts.items() if k in RATED})
                run.check_dead(stage, out / "dead_letters", total.dead, queries)
    if total.dead:
        letters = out / "dead_letters"
        run.say(
            f"{stage}: {total.dead} of {queries} {work.noun} could not be processed, see {letters}: "
            f"{common(reasons_of(letters))}. After a fix: `aqe retry {run.root}`"
        )
    counts = dict(total.counts)
    busy = counts.pop("busy_seconds", 0.0)
    rated = {kind: counts[kind] for kind in RATED if kind in counts}
    rates = {f"{kind}_per_worker_second": round(n / max(busy, 1e-9), 2) for kind, n in rated.items()}
    if todo and not finished:
        # A resumed run has seen only a part of the work: it measures no rate of the whole pool.
        rates |= {f"{kind}_per_second": round(n / progress.seconds, 2) for kind, n in rated.items()}
    # Held, not only busy: from the pool's start to its end, and what earlier runs were busy with. A worker takes one
    # core, beside a GPU too. Those that still wait for a node hold nothing.
    hours = (progress.seconds * len(actors) + busy_before) / 3600
    return {
        "units": len(units),
        "queries_per_unit": max((unit.stop - unit.start for unit in units), default=0),
        "rows_in": total.queries,
        "dead": total.dead,
        "cpu_hours": round(hours, 5),
        "gpu_hours": round(hours * pool.num_gpus, 5),
        **counts,
        "busy_seconds": round(busy, 3),
        **rates,
        "workers": pool.size,
    }


def _execute(stage: str, out: Path, todo: Sequence[Unit], work: Work, pool: Pool) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # An engine that dies while it loads is started again a few times before the stage gives up.
    context.max_consecutive_actor_init_deaths = 2
    tasks = -(-len(todo) // (at_once(len(todo), pool.size) if work.quick else 1))
    rows = [{"unit": json.dumps(asdict(unit))} for unit in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
        # By this name the dashboard shows the stage's operator and its actors.
        type(stage, (_Actor,), {}),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, tasks)),
        fn_constructor_args=(stage, str(out), work),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        label_selector=dict(pool.labels),
        runtime_env={"env_vars": dict(pool.env)},
    )
    # And by this one the stage's row of Ray Data.
    dataset.set_name(stage)
    rows_of_units: Iterator[dict[str, Any]] = dataset.iter_rows()
    return rows_of_units
