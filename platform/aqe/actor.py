"""What an actor of a pool does: it turns to one part after the other, and makes a file of each unit.

A unit's file is written atomically: a retried task overwrites its own file with the same rows.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from aqe.artifact import verify, write_parquet
from aqe.errors import ArtifactError, StorageError
from aqe.observe import metrics
from aqe.observe.lines import Line
from aqe.observe.progress import say
from aqe.records import DEAD_LETTERS, table
from aqe.storage import retry
from aqe.units import Part, Result, Row, Source, Unit, Work


class Actor:
    """Turns to one part after the other, and maps its units to files."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._opened: tuple[Source, Any] | None = None
        self._work: Any = None
        self._place, self._began = -1, time.time()
        # While an actor begins Ray Data expects it to take long, and perhaps to die.
        self._turn_to(0)

    def _turn_to(self, place: int) -> None:
        if place == self._place:
            return
        part, turned = self._parts[place], time.perf_counter()
        self._place, self._stage, self._title, self._out, work = place, part.stage, part.title, part.out, part.work
        self._read, self._schema, self._in_flight, stage = work.read, work.schema, work.in_flight, part.stage
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
            self._work = self._made(work)
        self._load = time.perf_counter() - turned

    def _made(self, work: Work) -> Callable[[Sequence[Row]], Result]:
        opened = self._opened is not None and self._opened[0] == work.source
        if (source := work.source or work.args.get("source")) is not None and not opened:
            say(Line(self._title, source.opening))
        if work.source is None:
            return work.make(**work.args)
        if self._opened is None or not opened:
            # Two models, or two indexes, may be more than the node has room for.
            self._opened = self._work = None
            self._opened = work.source, work.source.open()
        return work.make(self._opened[1], **work.args)

    def __call__(self, batch: pa.Table) -> pa.Table:
        actor = ray.get_runtime_context().get_actor_id()
        done: list[dict[str, Any]] = []
        given = zip(batch["part"].to_pylist(), batch["unit"].to_pylist(), strict=True)
        for place, texts in groupby(given, key=itemgetter(0)):
            self._turn_to(place)
            own = {"part": place, "actor": actor, "began": self._began, "load": self._load}
            units = [Unit(**json.loads(text)) for _, text in texts]
            overlaps = self._in_flight > 1 and self._unusable is None
            for one in self._overlapped(units) if overlaps else map(self._try, units):
                done.append({"files": 0.0, **one, **own})
                if one["refused"]:
                    # The others would wait for the same storage.
                    return pa.Table.from_pylist(done)
        return pa.Table.from_pylist(done)

    def _try(self, unit: Unit) -> dict[str, Any]:
        try:
            if self._unusable is not None:
                raise self._unusable
            return {**self._one(unit), "refused": "", "broken": False}
        except (ArtifactError, StorageError) as error:
            return refusal(unit.name, error)

    def _one(self, unit: Unit) -> dict[str, Any]:
        if (counts := self._found(unit)) is not None:
            # Made by a worker that died before it could say so: what is committed never changes.
            return counts
        metrics.level(metrics.BUSY, 1, stage=self._stage)
        started = time.perf_counter()
        rows = self._rows(unit)
        read = time.perf_counter()
        try:
            result = self._work(rows)
        except Exception as error:
            # One bad unit must not cost the others; the driver stops when there are too many.
            result = Result(self._schema.empty_table(), [(row, f"{type(error).__name__}: {error}") for row in rows])
        return self._keep(unit, rows, result, time.perf_counter() - started, read - started)

    def _overlapped(self, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        """The same for units of which several are open at once."""
        opened: dict[str, tuple[Unit, Sequence[Row]]] = {}
        found: list[dict[str, Any]] = []
        following = iter(units)
        reading = 0.0

        def read() -> Iterator[tuple[str, Sequence[Row]]]:
            nonlocal reading
            for unit in following:
                if (counts := self._found(unit)) is not None:
                    found.append(counts)
                    continue
                started = time.perf_counter()
                opened[unit.name] = unit, self._rows(unit)
                reading += time.perf_counter() - started
                yield unit.name, opened[unit.name][1]

        metrics.level(metrics.BUSY, 1, stage=self._stage)
        ended = time.perf_counter()
        try:
            for name, result in self._work.stream(read()):
                unit, rows = opened.pop(name)
                now = time.perf_counter()
                yield {**self._keep(unit, rows, result, now - ended, reading), "refused": "", "broken": False}
                ended, reading = now, 0.0
        except (ArtifactError, StorageError) as error:
            yield refusal(next(iter(opened), ""), error)
            return
        except Exception as error:
            # Which of them it was shows where each is worked on alone.
            say(f"{self._title}: {type(error).__name__}: {error}. The units that were open are tried one by one")
            yield from map(self._try, [*(unit for unit, _ in opened.values()), *following])
        yield from ({**counts, "refused": "", "broken": False} for counts in found)

    def _found(self, unit: Unit) -> dict[str, Any] | None:
        file = self._out / "data" / f"{unit.name}.parquet"
        return counts_of(file) if file.exists() else None

    def _rows(self, unit: Unit) -> Sequence[Row]:
        # Rows that the storage does not give are no dead letters: they are there for the next run.
        return retry(self._out / unit.name, partial(self._read, unit), reads=True)

    def _keep(self, unit: Unit, rows: Sequence[Row], result: Result, busy: float, read: float) -> dict[str, Any]:
        """Write what became of a unit, which took so many seconds, some of them to read its rows."""
        metrics.level(metrics.BUSY, 0, stage=self._stage)
        if (counts := self._found(unit)) is not None:
            # Meanwhile made by a worker of a cluster whose head is gone.
            return counts
        worked = time.perf_counter()
        dead = [
            {"stage": self._stage, "place": row.get("qid"), "reason": why, "row": json.dumps(row, default=str)}
            for row, why in result.dead
        ]
        metrics.count(metrics.ROWS, len(rows), stage=self._stage)
        letters = self._out / "dead_letters" / f"{unit.name}.parquet"
        letters.unlink(missing_ok=True)
        if dead:
            write_parquet(table(dead, DEAD_LETTERS), letters)
            metrics.count(metrics.DEAD_LETTERS, len(dead), stage=self._stage)
        counts = {**result.counts, "busy_seconds": busy}
        counts_row = {"name": unit.name, "queries": len(rows), "dead": len(dead), "counts": json.dumps(counts)}
        # The data file comes last: where it is, the unit is done.
        schema = result.data.schema.with_metadata({b"aqe": json.dumps(counts_row).encode()})
        write_parquet(result.data.cast(schema), self._out / "data" / f"{unit.name}.parquet")
        return {**counts_row, "files": read + time.perf_counter() - worked}


def refusal(name: str, error: ArtifactError | StorageError) -> dict[str, Any]:
    """As a row: Ray Data makes every error of a worker one of its own, and keeps the text alone."""
    none = {"name": name, "queries": 0, "dead": 0, "counts": "{}"}
    return {**none, "refused": str(error), "broken": isinstance(error, ArtifactError)}


def counts_of(file: Path) -> dict[str, Any]:
    """What a finished unit said of itself."""
    counts: dict[str, Any] = json.loads(pq.read_schema(file).metadata[b"aqe"])
    return counts
