"""The pool of actors: each unit once, dead letters counted, nothing doubled whatever was there before."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aqe import storage
from aqe.artifact import read_parquet, write_parquet
from aqe.errors import DeadLetterError, StorageError
from aqe.sample.plan import batched
from aqe.units import Pool, Result, Row, run_units
from tests.small_disk import small_disk

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


def run(out: Path, numbers: range, size: int, mended: Path, allowed: float = 1.0) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    stats = run_units(
        "squares", out, batched([{"n": n} for n in numbers], size), schema=SCHEMA, make=Squares, args={"mended": mended},
        pool=Pool(2, num_cpus=0.5), noun="numbers", max_dead_share=allowed, say=said.append,
    )  # fmt: skip
    return stats, said


def test_rows_dead_letters_and_resume(ray_cluster: None, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"
    stats, _ = run(out, range(50), 5, mended)
    assert (stats["rows_in"], stats["dead"], stats["tokens"]) == (50, 6, 44)
    letters = read_parquet(out / "dead_letters").to_pylist()
    assert sorted(letter["reason"] for letter in letters) == ["ValueError: forty"] * 5 + ["unlucky"]

    # Units with dead letters are tried again, the others are not.
    mended.touch()
    before = {p: p.stat().st_mtime_ns for p in (out / "data").glob("*.parquet")}
    stats, said = run(out, range(50), 5, mended)
    after = {p: p.stat().st_mtime_ns for p in (out / "data").glob("*.parquet")}
    assert sum(before[p] != after[p] for p in before) == 2
    assert "40 of 50 numbers were done before" in said[0]
    assert (stats["dead"], stats["tokens"]) == (1, 49)
    assert read_parquet(out / "data")["n"].to_pylist() == [n for n in range(50) if n != 13]

    # Cut otherwise, the old units' rows are not there twice.
    run(out, range(50), 7, mended)
    assert read_parquet(out / "data")["square"].to_pylist() == [n * n for n in range(50) if n != 13]


def test_too_many_dead_letters_stop_the_stage_and_keep_the_rest(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(DeadLetterError, match=r"5 x ValueError: forty") as caught:
        run(tmp_path / "out", range(50), 5, tmp_path / "mended", allowed=0.05)
    assert "run again" in str(caught.value)
    assert read_parquet(tmp_path / "out" / "data").num_rows >= 5


def test_a_half_written_file_is_no_unit(ray_cluster: None, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"
    mended.touch()
    write_parquet(pa.table({"n": [1]}), out / "data" / "x.parquet")
    (out / "data" / "x.parquet").rename(out / "data" / ".000000-abc.parquet.7.part")
    run(out, range(10), 5, mended)
    assert read_parquet(out / "data")["n"].to_pylist() == list(range(10))


class Writes:
    """Writes a file of a few kilobytes a unit, each of them once."""

    def __init__(self) -> None:
        storage.PAUSES = ()

    def __call__(self, rows: Sequence[Row]) -> Result:
        return Result(pa.table({"n": [row["n"] for row in rows], "square": [0] * len(rows)}, schema=SCHEMA), [])


def test_a_full_disk_stops_the_stage_with_its_reason_and_keeps_the_rest(ray_cluster: None, tmp_path: Path) -> None:
    def write(out: Path) -> dict[str, Any]:
        return run_units(
            "writes", out, batched([{"n": n} for n in range(4000)], 10), schema=SCHEMA, make=Writes, args={},
            pool=Pool(2, num_cpus=0.5), noun="numbers", max_dead_share=0, say=lambda line: None,
        )  # fmt: skip

    with small_disk(tmp_path / "disk", 1) as disk:
        with pytest.raises(StorageError, match="No space left on device"):
            write(disk.path / "out")
        kept = {p: p.stat().st_mtime_ns for p in (disk.path / "out" / "data").glob("*.parquet")}
        assert 0 < len(kept) < 400
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk.path)], check=True)
        write(disk.path / "out")
        assert read_parquet(disk.path / "out" / "data")["n"].to_pylist() == list(range(4000))
        assert {p: p.stat().st_mtime_ns for p in kept} == kept
