"""A pool of Ray actors that works through units, each unit done exactly once however often it is interrupted.

A unit is a small group of rows that is processed together. Its result is one Parquet file, named by the unit and
written atomically by the actor that made it, so that a retried task overwrites its own file with the same rows and a
rerun skips what is there. Ray Data spreads the units over the pool and restarts actors that died.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from aqe.artifact import read_parquet, write_parquet
from aqe.errors import DeadLetterError, StorageError
from aqe.observe import metrics
from aqe.observe.progress import Progress, Say
from aqe.records import DEAD_LETTERS, table

Row = Mapping[str, Any]

#: Counts that are shown as rates.
RATED = ("tokens", "candidates", "ranks")


@dataclass(frozen=True)
class Unit:
    """Rows that are processed together. Names sort in the order of the units."""

    name: str
    rows: Sequence[Row]


@dataclass
class Result:
    """What became of a unit: its rows, those that could not be processed with the reason, and counts for the rates."""

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


class _Actor:
    """Builds the worker once, then maps units to files."""

    def __init__(self, stage: str, out: str, empty: pa.Schema, make: Callable[..., Any], args: Mapping[str, Any]):
        self._stage, self._out, self._empty = stage, Path(out), empty
        metrics.begin(metrics.ROWS, stage=stage)
        metrics.begin(metrics.DEAD_LETTERS, stage=stage)
        metrics.level(metrics.BUSY, 0, stage=stage)
        self._work: Callable[[Sequence[Row]], Result] = make(**args)

    def __call__(self, batch: pa.Table) -> pa.Table:
        done = [self._try(row["name"], json.loads(row["rows"])) for row in batch.to_pylist()]
        actor = ray.get_runtime_context().get_actor_id()
        return pa.Table.from_pylist([{**row, "actor": actor} for row in done])

    def _try(self, name: str, rows: Sequence[Row]) -> dict[str, Any]:
        try:
            return self._one(name, rows)
        except StorageError as error:
            # As a row: Ray Data makes every error of a worker one of its own, and keeps the text alone.
            return {"name": name, "queries": 0, "dead": 0, "counts": "{}", "refused": str(error)}

    def _one(self, name: str, rows: Sequence[Row]) -> dict[str, Any]:
        file = self._out / "data" / f"{name}.parquet"
        if file.exists():
            # Made by a worker that died before it could say so: what is committed never changes.
            return {**_counts(file), "refused": ""}
        metrics.level(metrics.BUSY, 1, stage=self._stage)
        started = time.perf_counter()
        try:
            result = self._work(rows)
        except Exception as error:
            # One bad unit must not cost the others; the driver stops when there are too many.
            result = Result(self._empty.empty_table(), [(row, f"{type(error).__name__}: {error}") for row in rows])
        dead = [{"stage": self._stage, "reason": why, "row": json.dumps(row, default=str)} for row, why in result.dead]
        counts = {**result.counts, "busy_seconds": time.perf_counter() - started}
        metrics.level(metrics.BUSY, 0, stage=self._stage)
        metrics.count(metrics.ROWS, len(rows), stage=self._stage)
        letters = self._out / "dead_letters" / f"{name}.parquet"
        letters.unlink(missing_ok=True)
        if dead:
            write_parquet(table(dead, DEAD_LETTERS), letters)
            metrics.count(metrics.DEAD_LETTERS, len(dead), stage=self._stage)
        counts_row = {"name": name, "queries": len(rows), "dead": len(dead), "counts": json.dumps(counts)}
        # The data file comes last: where it is, the unit is done.
        schema = result.data.schema.with_metadata({b"aqe": json.dumps(counts_row).encode()})
        write_parquet(result.data.cast(schema), file)
        return {**counts_row, "refused": ""}


def _counts(file: Path) -> dict[str, Any]:
    """What a finished unit said of itself."""
    counts: dict[str, Any] = json.loads(pq.read_schema(file).metadata[b"aqe"])
    return counts


def _done(out: Path, units: Sequence[Unit]) -> dict[str, dict[str, Any]]:
    """Names of finished units and what they counted.

    Units with dead letters are tried again; files of units that were cut otherwise are removed, or their rows would be
    there twice.
    """
    names = {unit.name for unit in units}
    found = {}
    for path in sorted((out / "data").glob("*.parquet")):
        counts = _counts(path)
        if counts["dead"] or path.stem not in names:
            (out / "dead_letters" / path.name).unlink(missing_ok=True)
            path.unlink()
        else:
            found[path.stem] = counts
    return found


def run_units(
    stage: str,
    out: Path,
    units: Sequence[Unit],
    *,
    schema: pa.Schema,
    make: Callable[..., Callable[[Sequence[Row]], Result]],
    args: Mapping[str, Any],
    pool: Pool,
    noun: str,
    max_dead_share: float,
    say: Say,
) -> dict[str, Any]:
    """Work through `units` with a pool of actors that each call `make(**args)` once; results in `out`/data/*.parquet.

    Returns counts and rates. Raises DeadLetterError when more than `max_dead_share` of the rows could not be
    processed: as soon as that is certain, keeping the finished units for a rerun. StorageError when the storage refuses
    a result for long.
    """
    before = _done(out, units)
    todo = [unit for unit in units if unit.name not in before]
    total = sum(len(unit.rows) for unit in units)
    progress = Progress(stage, total, noun, say, already=total - sum(len(unit.rows) for unit in todo))
    counts: Counter[str] = Counter()
    for done in before.values():
        counts.update(json.loads(done["counts"]))
    dead, busy_before = 0, counts["busy_seconds"]
    worked: set[str] = set()
    if todo:
        with progress:
            metrics.level(metrics.UNITS_LEFT, len(todo), stage=stage)
            for number, done in enumerate(_execute(stage, out, todo, schema, make, args, pool), 1):
                if done["refused"]:
                    raise StorageError(done["refused"])
                made = json.loads(done["counts"])
                counts.update(made)
                worked.add(done["actor"])
                metrics.level(metrics.UNITS_LEFT, len(todo) - number, stage=stage)
                progress.update(done["queries"], **{k: v for k, v in made.items() if k in RATED})
                dead += done["dead"]
                check_dead(stage, out / "dead_letters", dead, total, max_dead_share)
    made = {kind: counts[kind] for kind in RATED if kind in counts}
    rates = {f"{kind}_per_worker_second": round(n / max(counts["busy_seconds"], 1e-9), 2) for kind, n in made.items()}
    if todo and not before:
        # A resumed run has seen only a part of the work: it measures no rate of the whole pool.
        rates |= {f"{kind}_per_second": round(n / progress.seconds, 2) for kind, n in made.items()}
    # Held, not only busy: from the pool's start to its end, and what earlier runs were busy with. A worker takes one
    # core, beside a GPU too. Those that still wait for a node hold nothing.
    hours = (progress.seconds * len(worked) + busy_before) / 3600
    return {
        "rows_in": total,
        "dead": dead,
        "cpu_hours": round(hours, 5),
        "gpu_hours": round(hours * pool.num_gpus, 5),
        **{k: round(v, 3) for k, v in counts.items()},
        **rates,
        "workers": pool.size,
    }


def _execute(
    stage: str, out: Path, todo: Sequence[Unit], schema: pa.Schema, make: Any, args: Mapping[str, Any], pool: Pool
) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # An engine that dies while it loads is started again a few times before the stage gives up.
    context.max_consecutive_actor_init_deaths = 2
    rows = [{"name": unit.name, "rows": json.dumps(unit.rows, default=str)} for unit in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        # By this name the dashboard shows the stage's operator and its actors.
        type(stage, (_Actor,), {}),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, len(rows))),
        fn_constructor_args=(stage, str(out), schema, make, dict(args)),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        label_selector=dict(pool.labels),
        runtime_env={"env_vars": dict(pool.env)},
    )
    # And by this one the stage's row of Ray Data.
    dataset.set_name(stage)
    return dataset.iter_rows()


def check_dead(stage: str, letters: Path, dead: int, total: int, allowed: float) -> None:
    """DeadLetterError when more than the share `allowed` of `total` rows is in the dead letters at `letters`."""
    if dead <= allowed * total:
        return
    reasons = Counter(read_parquet(letters).column("reason").to_pylist())
    common = "; ".join(f"{n} x {why}" for why, n in reasons.most_common(3))
    raise DeadLetterError(
        f"{stage}: {dead} of {total} rows could not be processed, more than max_dead_share = {allowed:g}. "
        f"Reasons: {common}. All are in {letters}. Mend the cause and run again: what is finished is kept."
    )
