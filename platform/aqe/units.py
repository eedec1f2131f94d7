"""Units of work: a slice of the queries that a stage works through, and what becomes of it.

A unit is a name and a slice of files: who works on it reads its rows, so that no row passes through the driver. Its
result is one Parquet file, named by the unit. Units are worked through by pools, see aqe.pools.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from aqe.artifact import Artifact, parquet_files
from aqe.errors import ArtifactError

Row = Mapping[str, Any]


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


class Stream(Protocol):
    """A worker with several units open at once, which it takes by their names and ends in any order."""

    def __call__(self, rows: Sequence[Row]) -> Result: ...

    def stream(self, units: Iterator[tuple[str, Sequence[Row]]]) -> Iterator[tuple[str, Result]]: ...


class Source(Protocol):
    """What takes long to load. Equal ones load the same."""

    @property
    def opening(self) -> str:
        """What a person reads while it loads, such as `loading the model`."""

    def open(self) -> Any: ...


@dataclass(frozen=True)
class Work:
    """What the actors of a pool do: `make(**args)` once, then `read` each unit and hand its rows to what was made."""

    make: Callable[..., Callable[[Sequence[Row]], Result]]
    """Where there is a `source`, what was opened is its first argument."""
    args: Mapping[str, Any]
    """`source` among them is a Source that `make` opens itself."""
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
    source: Source | None = None
    """Opened once by an actor for all parts in a row that have the same."""
    in_flight: int = 1
    """Units that a worker has open at once. With more than one, `make` gives a `Stream`."""


@dataclass(frozen=True)
class Part:
    """What one stage has for a pool: its units, and where their results go."""

    stage: str
    out: Path
    units: Sequence[Unit]
    work: Work
    title: str = ""
    """What people call the stage; a run knows it."""


def cut_units(rows: int, size: int) -> list[Unit]:
    """Units of `size` of so many rows."""
    starts = range(0, rows, size)
    return [Unit(f"{start:09d}-{min(start + size, rows):09d}", start, min(start + size, rows)) for start in starts]


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
            "Remove the directory and run again: it is made again."
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
            "those that it was made with. Remove the directory and run again: it is made again."
        )
