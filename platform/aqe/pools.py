"""Pools of Ray actors that work through units, each unit done exactly once however often it is interrupted.

A unit's file is written atomically by the actor that made it: a retried task overwrites its own file with the same
rows, and a rerun skips what is there. Ray Data spreads the units over the pool and restarts actors that died. Stages
that need the same model or the same index are parts of one pool's life: it is loaded once.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
import ray.data

from aqe.actor import Actor, counts_of
from aqe.dead_letters import common, reasons_of
from aqe.errors import ArtifactError, StorageError
from aqe.observe import metrics
from aqe.observe.lines import Line
from aqe.observe.progress import Progress, hide, live
from aqe.run import Run
from aqe.units import Part, Pool, Unit, Work

#: Counts that are shown as rates.
RATED = ("tokens", "candidates", "ranks")
#: Quick units are handed out so many at a time: a task costs the driver far more than one more unit in it.
MOST_AT_ONCE = 32
#: But each worker gets so many tasks, or the last one would let the others wait.
TASKS_A_WORKER = 32
#: Of units that overlap: at the end of each task the last of them drain.
OVERLAPPING_TASKS = 4


def at_once(units: int, workers: int, tasks: int | None = None) -> int:
    """Units of a task where several are handed out, so that each worker gets `tasks`."""
    return max(1, min(MOST_AT_ONCE, units // (workers * (tasks or TASKS_A_WORKER))))


class _Running:
    """A part on its way: its finished units, what they counted, how far it is."""

    def __init__(self, run: Run, part: Part) -> None:
        self.run, self.part = run, replace(part, title=run.title(part.out, part.stage))
        self.queries = self.dead = 0
        self.counts: Counter[str] = Counter()
        self._finished = self._look()
        self.todo = [unit for unit in part.units if unit.name not in self._finished]
        self._left = {unit.name: unit.stop - unit.start for unit in self.todo}
        self._total = sum(unit.stop - unit.start for unit in part.units)
        self._busy_before = self.counts["busy_seconds"]
        self._load: dict[str, float] = {}
        """Seconds until each actor could begin with it."""
        self._files = 0.0
        self._began, self._first = time.time(), math.inf
        self._progress: Progress | None = None

    def _look(self) -> set[str]:
        """Names of finished units; what they counted is added up.

        Units with dead letters are tried again; files of units that were cut otherwise are removed, or their rows would
        be there twice.
        """
        names = {unit.name for unit in self.part.units}
        finished = set()
        for path in sorted((self.part.out / "data").glob("*.parquet")):
            counts = counts_of(path)
            if counts["dead"] or path.stem not in names:
                (self.part.out / "dead_letters" / path.name).unlink(missing_ok=True)
                path.unlink()
            else:
                self._count(counts)
                finished.add(path.stem)
        return finished

    def _count(self, done: Mapping[str, Any]) -> dict[str, float]:
        """Add what a unit said of itself; returns its counts."""
        counts: dict[str, float] = json.loads(done["counts"])
        self.queries += done["queries"]
        self.dead += done["dead"]
        self.counts.update(counts)  # type: ignore[arg-type]
        return counts

    @property
    def whole(self) -> bool:
        return not self._left

    def begin(self, life: ExitStack, first: bool = False) -> None:
        """From now on the pool works on it; `first`, if its workers are yet to come."""
        if self._progress is None:
            already = self._total - sum(self._left.values())
            noun, stage, title, say = self.part.work.noun, self.part.stage, self.part.title, self.run.say
            if first or live():
                say(Line(title, "starting workers" if first else "starts"))
            self._progress = Progress(stage, self._total, noun, say, already=already, title=title)
            life.enter_context(self._progress)
            self._began = time.time()
            metrics.level(metrics.UNITS_LEFT, len(self._left), stage=stage)

    def end(self) -> None:
        """The pool has no more work of it."""
        hide(self.part.stage)

    def add(self, done: Mapping[str, Any]) -> None:
        """A unit is done. Raises DeadLetterError when too many rows could not be processed."""
        assert self._progress is not None
        counts = self._count(done)
        self._load[done["actor"]] = done["load"]
        self._files += done["files"]
        self._first = min(self._first, done["began"])
        size = self._left.pop(done["name"])
        metrics.level(metrics.UNITS_LEFT, len(self._left), stage=self.part.stage)
        self._progress.update(size, **{k: v for k, v in counts.items() if k in RATED})
        self.run.check_dead(self.part.stage, self.part.out / "dead_letters", self.dead, self._total)

    def stats(self, pool: Pool) -> dict[str, Any]:
        """Of the whole part: counts, rates, what it cost. Says what could not be processed."""
        part = self.part
        if self.dead:
            letters = part.out / "dead_letters"
            why = f"{common(reasons_of(letters))}. After a fix: `aqe retry {self.run.root}`"
            lost = f"{self.dead} of {self._total} {part.work.noun} could not be processed, see {letters}: {why}"
            self.run.note(part.out, part.stage, lost)
        counts = dict(self.counts)
        busy = counts.pop("busy_seconds", 0.0)
        # A part has begun before its first result comes, which may be all of it.
        new = busy - self._busy_before
        seconds = 0.0 if self._progress is None else max(self._progress.seconds, new / len(self._load))
        rated = {kind: counts[kind] for kind in RATED if kind in counts}
        rates = {f"{kind}_per_worker_second": round(n / max(busy, 1e-9), 2) for kind, n in rated.items()}
        if self.todo and not self._finished:
            # A resumed run has seen only a part of the work: it measures no rate of the whole pool.
            rates |= {f"{kind}_per_second": round(n / seconds, 2) for kind, n in rated.items()}
        # Held, not only busy: from the pool's start to its end, and what earlier runs were busy with. A worker takes
        # one core, beside a GPU too. Those that still wait for a node hold nothing.
        hours = (seconds * len(self._load) + self._busy_before) / 3600
        return {
            "units": len(part.units),
            "queries_per_unit": max((unit.stop - unit.start for unit in part.units), default=0),
            "rows_in": self.queries,
            "dead": self.dead,
            "cpu_hours": round(hours, 5),
            "gpu_hours": round(hours * pool.num_gpus, 5),
            **counts,
            "busy_seconds": round(busy, 3),
            **rates,
            "workers": pool.size,
            "phases": self._phases(seconds),
        }

    def _phases(self, seconds: float) -> dict[str, float]:
        """Where the seconds of this run went, in all as many: until workers began, loading, working, files.

        Of several workers, the mean. Work includes what they waited for one another.
        """
        if not self._load:
            return {}
        start = min(max(0.0, self._first - self._began), seconds)
        load = min(fmean(self._load.values()), seconds - start)
        write = min(self._files / len(self._load), seconds - start - load)
        parts = {"start": start, "load": load, "work": seconds - start - load - write, "write": write}
        return {name: round(spent, 3) for name, spent in parts.items()}


def run_parts(run: Run, name: str, parts: Sequence[Part], pool: Pool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Work through the units of all parts, one part after the other, with one pool of actors, which `name` names.

    Results of each are in its `out`/data/*.parquet. Needs a connection to Ray. Yields the place of each part as soon as
    it is whole, with counts and rates. Raises DeadLetterError when more than `run.max_dead_share` of a part's rows
    could not be processed: as soon as that is certain, keeping the finished units for a rerun. StorageError when the
    storage refuses a result for long. ArtifactError when what a node is to read is not as it was made.
    """
    running = [_Running(run, part) for part in parts]
    for place, one in enumerate(running):
        if one.whole:
            yield place, one.stats(pool)
    waiting = [place for place, one in enumerate(running) if not one.whole]
    if not waiting:
        return
    unfinished = [running[place] for place in waiting]
    with ExitStack() as life:
        unfinished[0].begin(life, first=True)
        for done in _execute(name, unfinished, pool):
            if done["refused"]:
                raise (ArtifactError if done["broken"] else StorageError)(done["refused"])
            one = unfinished[done["part"]]
            one.begin(life)
            one.add(done)
            if one.whole:
                stats = one.stats(pool)
                one.end()
                if following := next((other for other in unfinished if not other.whole), None):
                    following.begin(life)
                yield waiting[done["part"]], stats


def run_units(run: Run, stage: str, out: Path, units: Sequence[Unit], work: Work, pool: Pool) -> dict[str, Any]:
    """The same for a stage that has a pool of its own; returns its counts and rates."""
    [(_, stats)] = run_parts(run, stage, [Part(stage, out, units, work)], pool)
    return stats


def _execute(name: str, running: Sequence[_Running], pool: Pool) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # An engine that dies while it loads is started again a few times before the stage gives up.
    context.max_consecutive_actor_init_deaths = 2
    rows = [{"part": i, "unit": json.dumps(asdict(unit))} for i, one in enumerate(running) for unit in one.todo]
    works = [one.part.work for one in running]
    overlap = all(work.in_flight > 1 for work in works)
    several = overlap or all(work.quick for work in works)
    tasks = -(-len(rows) // (at_once(len(rows), pool.size, OVERLAPPING_TASKS if overlap else None) if several else 1))
    dataset = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
        # By this name the dashboard shows the pool's operator and its actors.
        type(name, (Actor,), {}),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, tasks)),
        fn_constructor_args=([replace(one.part, units=()) for one in running],),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        label_selector=dict(pool.labels),
        runtime_env={"env_vars": dict(pool.env)},
    )
    # And by this one its row of Ray Data.
    dataset.set_name(name)
    rows_of_units: Iterator[dict[str, Any]] = dataset.iter_rows()
    return rows_of_units
