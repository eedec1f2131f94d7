"""The pool of actors: each unit once, dead letters counted, nothing doubled whatever was there before."""

import itertools
import json
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data
from hypothesis import given
from hypothesis import strategies as st

from aqe import storage
from aqe.artifact import Artifact, make, read_parquet, write_parquet
from aqe.errors import ArtifactError, DeadLetterError, StorageError
from aqe.pools import run_parts, run_units
from aqe.run import Run
from aqe.units import Part, Pool, Result, Row, Unit, Work, cut_units, with_files
from tests.test_artifact import flip
from tests.tools.small_disk import small_disk

SCHEMA = pa.schema([("n", pa.int64()), ("square", pa.int64())])


class Squares:
    """Squares numbers; refuses 13 as a row, and fails with its whole unit at 40 until a file says that it may not."""

    def __init__(self, mended: Path) -> None:
        self._mended = mended

    def __call__(self, rows: Sequence[Row]) -> Result:
        if any(row["n"] == 40 for row in rows) and not self._mended.exists():
            raise ValueError("forty")
        good = [row for row in rows if row["n"] != 13]
        data = pa.Table.from_pylist([{"n": row["n"], "square": row["n"] ** 2} for row in good], schema=SCHEMA)
        return Result(data, [(row, "unlucky") for row in rows if row["n"] == 13], {"tokens": len(good)})


class Numbers:
    """The rows of a unit are its numbers; some cannot be read until a file says that they can."""

    def __init__(self, mended: Path | None = None, broken: int = -1) -> None:
        self._mended, self._broken = mended, broken

    def __call__(self, unit: Unit) -> list[Row]:
        storage.PAUSES = ()
        if unit.start <= self._broken < unit.stop and self._mended and not self._mended.exists():
            raise OSError("a file is not there")
        return [{"n": n} for n in range(unit.start, unit.stop)]


class Broken:
    """No unit can be read; each try is noted."""

    def __init__(self, tries: Path) -> None:
        self._tries = tries

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In the worker, before the first unit is read.
        self.__dict__.update(state)
        storage.PAUSES = ()

    def __call__(self, unit: Unit) -> list[Row]:
        (self._tries / unit.name).touch()
        raise OSError("gone")


def run(
    out: Path, numbers: int, size: int, mended: Path, allowed: float = 1.0, broken: int = -1, quick: bool = False
) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    work = Work(Squares, {"mended": mended}, Numbers(mended, broken), SCHEMA, "numbers", quick)
    run = Run(out.parent, said.append, max_dead_share=allowed)
    return run_units(run, "squares", out, cut_units(numbers, size), work, Pool(2, num_cpus=0.5)), said


def test_rows_dead_letters_and_resume(ray_cluster: None, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"
    stats, _ = run(out, 50, 5, mended)
    assert (stats["rows_in"], stats["dead"], stats["tokens"]) == (50, 6, 44)
    letters = read_parquet(out / "dead_letters").to_pylist()
    assert sorted(letter["reason"] for letter in letters) == ["ValueError: forty"] * 5 + ["unlucky"]

    # Units with dead letters are tried again, the others are not.
    mended.touch()
    before = {p: p.stat().st_mtime_ns for p in (out / "data").glob("*.parquet")}
    stats, said = run(out, 50, 5, mended)
    after = {p: p.stat().st_mtime_ns for p in (out / "data").glob("*.parquet")}
    assert sum(before[p] != after[p] for p in before) == 2
    assert said[:2] == ["squares: starting workers", "squares: 40 of 50 numbers were done before"]
    assert (stats["dead"], stats["tokens"]) == (1, 49)
    assert read_parquet(out / "data")["n"].to_pylist() == [n for n in range(50) if n != 13]

    # Cut otherwise, the old units' rows are not there twice.
    run(out, 50, 7, mended)
    assert read_parquet(out / "data")["square"].to_pylist() == [n * n for n in range(50) if n != 13]


def test_quick_units_go_out_several_at_a_time_and_end_in_the_same_rows(ray_cluster: None, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    mended.touch()
    stats, said = run(tmp_path / "out", 500, 2, mended, quick=True)
    assert (stats["rows_in"], stats["dead"], stats["queries_per_unit"]) == (500, 1, 2)
    assert read_parquet(tmp_path / "out" / "data")["n"].to_pylist() == [n for n in range(500) if n != 13]
    assert len(list((tmp_path / "out" / "data").iterdir())) == 250
    assert "500/500 numbers" in said[-2]
    letters = tmp_path / "out" / "dead_letters"
    assert said[-1] == (
        f"squares: 1 of 500 numbers could not be processed, see {letters}: 1 x unlucky. "
        f"After a fix: `aqe retry {tmp_path}`"
    )


def test_rows_that_cannot_be_read_stop_the_stage_and_are_no_dead_letters(ray_cluster: None, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"
    with pytest.raises(StorageError, match=r"cannot be read: a file is not there.* run again"):
        run(out, 20, 5, mended, broken=7)
    assert not list((out / "dead_letters").glob("*")) or read_parquet(out / "dead_letters").num_rows <= 1
    mended.touch()
    stats, _ = run(out, 20, 5, mended, broken=7)
    assert read_parquet(out / "data")["n"].to_pylist() == [n for n in range(20) if n != 13]
    assert (stats["rows_in"], stats["units"]) == (20, 4)


def test_a_refusal_ends_the_task_at_once(ray_cluster: None, tmp_path: Path) -> None:
    read: Path = tmp_path / "read"
    read.mkdir()
    work = Work(Squares, {"mended": tmp_path}, Broken(read), SCHEMA, "numbers", quick=True)
    with pytest.raises(StorageError, match="cannot be read"):
        run_units(Run(tmp_path), "squares", tmp_path / "out", cut_units(2000, 1), work, Pool(1, num_cpus=0.5))
    # Each task has 32 units, and tries the first alone. How many tasks are on their way is Ray Data's affair.
    tried = sorted(int(file.name.partition("-")[0]) for file in read.iterdir())
    assert tried == [start for start in tried if start % 32 == 0]


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_no_unit_is_worked_on_where_an_artifact_is_not_as_it_was_made(
    ray_cluster: None, tmp_path: Path, harm: str
) -> None:
    def build(out: Path) -> dict[str, int]:
        write_parquet(pa.table({"n": [1, 2, 3]}), out / "data" / "0.parquet")
        return {}

    samples = make(tmp_path, "sample", config={}, inputs={}, build=build)
    file = samples.path / "data" / "0.parquet"
    error: type[Exception] = ArtifactError if harm == "flipped" else StorageError
    if harm == "flipped":
        flip(file)
    else:
        file.unlink()
    read: Path = tmp_path / "read"
    read.mkdir()
    work = Work(Squares, {"mended": tmp_path}, Broken(read), SCHEMA, "numbers", reads=(samples.path / "data",))
    with pytest.raises(error, match=str(file)) as caught:
        run_units(Run(tmp_path), "squares", tmp_path / "out", cut_units(20, 5), work, Pool(2, num_cpus=0.5))
    assert "aqe verify" in str(caught.value) if harm == "flipped" else "cannot be read" in str(caught.value)
    assert not list(read.iterdir()) and not (tmp_path / "out").exists()


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_units_are_given_the_files_that_hold_their_queries(rows: int, size: int, other: int) -> None:
    names = {unit.name: range(unit.start, unit.stop) for unit in cut_units(rows, other)}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "data").mkdir()
        for name in names:
            (Path(directory) / "data" / f"{name}.parquet").touch()
        artifact = Artifact(
            Path(directory), {"stats": {"queries_per_unit": other, "units": len(names)}, "stage": "earlier"}
        )
        units = with_files(cut_units(rows, size), "earlier", artifact)
        (Path(directory) / "data" / "of another cut.parquet").touch()
        with pytest.raises(ArtifactError, match=f"has {len(names) + 1} files where earlier made {len(names)}"):
            with_files(cut_units(rows, size), "earlier", artifact)
    assert [row for unit in units for row in range(unit.start, unit.stop)] == list(range(rows))
    assert sorted(unit.name for unit in units) == [unit.name for unit in units]
    for unit in units:
        expected = [name for name, own in names.items() if set(own) & set(range(unit.start, unit.stop))]
        assert [Path(file).stem for file in unit.files["earlier"]] == expected


def test_too_many_dead_letters_stop_the_stage_and_keep_the_rest(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(DeadLetterError, match=r"5 x ValueError: forty") as caught:
        run(tmp_path / "out", 50, 5, tmp_path / "mended", allowed=0.05)
    assert "run again" in str(caught.value)
    assert read_parquet(tmp_path / "out" / "data").num_rows >= 5


def test_a_half_written_file_is_no_unit(ray_cluster: None, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"
    mended.touch()
    write_parquet(pa.table({"n": [1]}), out / "data" / "x.parquet")
    (out / "data" / "x.parquet").rename(out / "data" / ".000000-abc.parquet.7.part")
    run(out, 10, 5, mended)
    assert read_parquet(out / "data")["n"].to_pylist() == list(range(10))


class Writes:
    """Writes a file of a few kilobytes a unit, each of them once."""

    def __init__(self) -> None:
        storage.PAUSES = ()

    def __call__(self, rows: Sequence[Row]) -> Result:
        return Result(pa.table({"n": [row["n"] for row in rows], "square": [0] * len(rows)}, schema=SCHEMA), [])


def test_a_full_disk_stops_the_stage_with_its_reason_and_keeps_the_rest(ray_cluster: None, tmp_path: Path) -> None:
    def write(out: Path) -> dict[str, Any]:
        work = Work(Writes, {}, Numbers(), SCHEMA)
        run = Run(out.parent, lambda line: None, max_dead_share=0)
        return run_units(run, "writes", out, cut_units(4000, 10), work, Pool(2, num_cpus=0.5))

    with small_disk(tmp_path / "disk", 1) as disk:
        with pytest.raises(StorageError, match="No space left on device"):
            write(disk.path / "out")
        kept = {p: p.stat().st_mtime_ns for p in (disk.path / "out" / "data").glob("*.parquet")}
        assert 0 < len(kept) < 400
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk.path)], check=True)
        write(disk.path / "out")
        assert read_parquet(disk.path / "out" / "data")["n"].to_pylist() == list(range(4000))
        assert {p: p.stat().st_mtime_ns for p in kept} == kept


class Where:
    """Says in which process the rows of a unit are read."""

    def __call__(self, unit: Unit) -> list[Row]:
        return [{"n": os.getpid()} for _ in range(unit.start, unit.stop)]


def test_rows_are_read_where_they_are_worked_on(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[dict[str, Any]] = []
    from_items = ray.data.from_items

    def listen(items: list[dict[str, Any]], **options: Any) -> ray.data.Dataset:
        handed.extend(items)
        return from_items(items, **options)

    monkeypatch.setattr(ray.data, "from_items", listen)
    units = [replace(unit, files={"samples": ("000001.parquet",)}) for unit in cut_units(20, 5)]
    work = Work(Squares, {"mended": tmp_path / "mended"}, Where(), SCHEMA, quick=True)
    run_units(Run(tmp_path), "where", tmp_path / "out", units, work, Pool(2, num_cpus=0.5))
    assert os.getpid() not in read_parquet(tmp_path / "out" / "data")["n"].to_pylist()
    # The driver hands out names and numbers: as much for a unit of five rows as for one of a million.
    assert [json.loads(item["unit"]) for item in handed] == [
        {"name": unit.name, "start": unit.start, "stop": unit.stop, "files": {"samples": ["000001.parquet"]}}
        for unit in units
    ]
    assert all(item.keys() == {"unit", "part"} and item["part"] == 0 for item in handed)


@dataclass(frozen=True)
class Loaded:
    """Notes each opening."""

    name: str
    notes: Path

    @property
    def opening(self) -> str:
        return f"loading {self.name}"

    def open(self) -> str:
        (self.notes / f"{self.name} {os.getpid()} {uuid.uuid4().hex}").touch()
        return self.name


class Adds:
    """Adds a number to each; a row that `refused` names is a dead letter."""

    def __init__(self, opened: str, number: int, refused: int = -1) -> None:
        self._opened, self._number, self._refused = opened, number, refused

    def __call__(self, rows: Sequence[Row]) -> Result:
        good = [row["n"] for row in rows if row["n"] != self._refused]
        data = pa.table({"n": good, "square": [n + self._number for n in good]}, schema=SCHEMA)
        return Result(data, [(row, self._opened) for row in rows if row["n"] == self._refused], {"tokens": len(good)})


class Overlapping:
    """Has three units open and ends the newest first. With a unit that holds 40 it fails, whatever else is open."""

    def __init__(self, mended: Path, notes: Path) -> None:
        self._one, self._mended, self._notes = Squares(mended), mended, notes

    def __call__(self, rows: Sequence[Row]) -> Result:
        return self._one(rows)

    def stream(self, units: Iterator[tuple[str, Sequence[Row]]]) -> Iterator[tuple[str, Result]]:
        opened: list[tuple[str, Sequence[Row]]] = []
        while True:
            opened += itertools.islice(units, 3 - len(opened))
            if not opened:
                return
            (self._notes / f"{len(opened)} {uuid.uuid4().hex}").touch()
            if any(row["n"] == 40 for _, rows in opened for row in rows) and not self._mended.exists():
                raise RuntimeError("the engine is dead")
            name, rows = opened.pop()
            yield name, self._one(rows)


@pytest.mark.parametrize("workers", [1, 2])
def test_units_that_overlap_are_each_done_once(ray_cluster: None, tmp_path: Path, workers: int) -> None:
    notes, mended, out = tmp_path / "notes", tmp_path / "mended", tmp_path / "out"
    notes.mkdir()

    def run_overlapping() -> dict[str, Any]:
        args = {"mended": mended, "notes": notes}
        work = Work(Overlapping, args, Numbers(), SCHEMA, "numbers", in_flight=3)
        run = Run(tmp_path, lambda line: None, max_dead_share=1)
        return run_units(run, "overlapping", out, cut_units(100, 2), work, Pool(workers, num_cpus=0.5))

    stats = run_overlapping()
    assert "3" in {path.name.split(" ")[0] for path in notes.iterdir()}
    # The unit that kills the engine is a dead letter, and so is the row that is refused; nothing else suffers.
    assert (stats["rows_in"], stats["dead"], stats["tokens"]) == (100, 3, 97)
    letters = read_parquet(out / "dead_letters").to_pylist()
    assert sorted(letter["reason"] for letter in letters) == ["ValueError: forty"] * 2 + ["unlucky"]
    assert read_parquet(out / "data")["n"].to_pylist() == [n for n in range(100) if n not in (13, 40, 41)]
    # Of two workers one may have had all units, and a worker that had none is not counted.
    held = [stats["cpu_hours"] * 3600 / count for count in range(1, workers + 1)]
    assert any(sum(stats["phases"].values()) == pytest.approx(one, abs=0.1) for one in held)

    mended.touch()
    (out / "data" / "000000020-000000022.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "data").glob("*.parquet")}
    stats = run_overlapping()
    assert (stats["rows_in"], stats["dead"]) == (100, 1)
    assert read_parquet(out / "data")["n"].to_pylist() == [n for n in range(100) if n != 13]
    changed = {path.stem for path in kept if path.stat().st_mtime_ns != kept[path]}
    assert changed == {"000000012-000000014", "000000040-000000042"}


def test_overlapping_units_that_cannot_be_read_stop_the_stage(ray_cluster: None, tmp_path: Path) -> None:
    notes, mended = tmp_path / "notes", tmp_path / "mended"
    notes.mkdir()
    args = {"mended": mended, "notes": notes}
    work = Work(Overlapping, args, Numbers(mended, 7), SCHEMA, "numbers", in_flight=3)
    with pytest.raises(StorageError, match="cannot be read: a file is not there"):
        run_units(Run(tmp_path), "overlapping", tmp_path / "out", cut_units(20, 2), work, Pool(1, num_cpus=0.5))


def parts_of(root: Path, notes: Path, refused: int = -1) -> list[Part]:
    """Three stages; the first two need the same."""
    asked = [("first", "model", 10, -1), ("second", "model", 20, refused), ("third", "index", 30, -1)]
    return [
        Part(
            stage,
            root / stage,
            cut_units(number, 4),
            Work(Adds, {"number": number, "refused": dead}, Numbers(), SCHEMA, "numbers", source=Loaded(name, notes)),
        )
        for stage, name, number, dead in asked
    ]


def test_parts_of_one_life_load_once_what_they_share(ray_cluster: None, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    said: list[str] = []
    run = Run(tmp_path, said.append, max_dead_share=1)
    parts = parts_of(tmp_path, notes, refused=7)
    found = list(run_parts(run, "life", parts, Pool(1, num_cpus=0.5)))
    assert [place for place, _ in found] == [0, 1, 2]
    assert [stats["rows_in"] for _, stats in found] == [10, 20, 30]
    assert [stats["dead"] for _, stats in found] == [0, 1, 0]
    for part, number in zip(parts, (10, 20, 30), strict=True):
        own = [n for n in range(number) if (part.stage, n) != ("second", 7)]
        assert read_parquet(part.out / "data")["square"].to_pylist() == [n + number for n in own]
    assert read_parquet(tmp_path / "second" / "dead_letters")["stage"].to_pylist() == ["second"]
    assert sorted(path.name.split(" ")[0] for path in notes.iterdir()) == ["index", "model"]
    assert [line.split(":")[0] for line in said if " numbers (100 %)" in line] == ["first", "second", "third"]
    for _, stats in found:
        assert stats["phases"].keys() == {"start", "load", "work", "write"}
        assert sum(stats["phases"].values()) == pytest.approx(stats["cpu_hours"] * 3600, abs=0.05)
        assert min(stats["phases"].values()) >= 0

    # What is done is done: of the second only the unit with the dead letter, of a third that lost a file only that.
    lost = tmp_path / "third" / "data" / "000000008-000000012.parquet"
    lost.unlink()
    files = [*tmp_path.glob("*/data/*.parquet")]
    before = {path: path.stat().st_mtime_ns for path in files}
    found = list(run_parts(run, "life", parts_of(tmp_path, notes), Pool(2, num_cpus=0.5)))
    assert sorted(place for place, _ in found) == [0, 1, 2] and found[0][0] == 0
    assert {path.stem for path in files if path.stat().st_mtime_ns != before[path]} == {"000000004-000000008"}
    assert lost.exists() and read_parquet(tmp_path / "third" / "data").num_rows == 30
    assert {place: stats["dead"] for place, stats in found} == {0: 0, 1: 0, 2: 0}


def test_a_part_that_fails_leaves_what_is_whole(ray_cluster: None, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    whole: list[int] = []
    run = Run(tmp_path, lambda line: None, max_dead_share=0)
    with pytest.raises(DeadLetterError, match="second: 1 of 20"):
        whole.extend(place for place, _ in run_parts(run, "life", parts_of(tmp_path, notes, 7), Pool(1, num_cpus=0.5)))
    assert whole == [0] and len(list((tmp_path / "first" / "data").iterdir())) == 3
    found = list(run_parts(run, "life", parts_of(tmp_path, notes), Pool(1, num_cpus=0.5)))
    assert [stats["rows_in"] for _, stats in found] == [10, 20, 30]
