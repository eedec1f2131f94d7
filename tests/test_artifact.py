"""Artifacts: whole or not at all, made once, named by what they depend on."""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from aqe.artifact import MANIFEST, Artifact, Slices, load, make, parquet_files, read_parquet, write_parquet
from aqe.errors import ArtifactError


def build_counting(calls: list[Path], fail: bool = False) -> Any:
    def build(out: Path) -> dict[str, int]:
        calls.append(out)
        write_parquet(pa.table({"n": [1, 2, 3]}), out / "data.parquet")
        if fail:
            raise RuntimeError("killed")
        return {"rows_out": 3}

    return build


def test_made_once(tmp_path: Path) -> None:
    calls: list[Path] = []
    first = make(tmp_path, "stage", config={"a": 1}, inputs={}, build=build_counting(calls))
    said: list[str] = []
    again = make(tmp_path, "stage", config={"a": 1}, inputs={}, build=build_counting(calls), say=said.append)
    assert len(calls) == 1
    assert first == again
    assert "done before" in said[0]
    assert first.read()["n"].to_pylist() == [1, 2, 3]
    assert first.stats["rows_out"] == 3


def test_name_follows_what_it_depends_on(tmp_path: Path) -> None:
    def path(config: dict[str, int], inputs: dict[str, Artifact | str]) -> Path:
        return make(tmp_path, "s", config=config, inputs=inputs, build=lambda out: {}).path

    base = make(tmp_path, "base", config={}, inputs={}, build=lambda out: {})
    paths = {path({"a": 1}, {}), path({"a": 2}, {}), path({"a": 1}, {"x": "1"}), path({"a": 1}, {"x": base})}
    assert len(paths) == 4
    assert path({"a": 1}, {"x": base}) in paths
    assert load(path({"a": 1}, {"x": base})).manifest["parents"] == [base.path.name]


def test_unfinished_is_refused_and_resumed(tmp_path: Path) -> None:
    calls: list[Path] = []
    with pytest.raises(RuntimeError):
        make(tmp_path, "stage", config={}, inputs={}, build=build_counting(calls, fail=True))
    with pytest.raises(ArtifactError, match="not complete"):
        load(calls[0])
    made = make(tmp_path, "stage", config={}, inputs={}, build=build_counting(calls))
    assert made.path == calls[0] == calls[1]
    assert (made.path / MANIFEST).exists()


def test_two_builders_do_not_meet(tmp_path: Path) -> None:
    done = make(tmp_path, "stage", config={}, inputs={}, build=lambda out: {})
    (done.path / MANIFEST).unlink()
    with FileLock(tmp_path / f".{done.path.name}.lock"), pytest.raises(ArtifactError, match="another process"):
        make(tmp_path, "stage", config={}, inputs={}, build=lambda out: {})


def test_damaged_manifest_is_named(tmp_path: Path) -> None:
    done = make(tmp_path, "stage", config={}, inputs={}, build=lambda out: {})
    (done.path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        load(done.path)


def test_directory_reads_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_parquet(pa.table({"n": [name]}), tmp_path / "data" / f"{name}.parquet")
    assert read_parquet(tmp_path / "data")["n"].to_pylist() == ["a", "b", "c"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="no Parquet"):
        read_parquet(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_parquet(tmp_path / "x.parquet")


@given(st.lists(st.integers(1, 5), max_size=5), st.data())
def test_slices_are_the_rows_of_the_file(groups: list[int], data: st.DataObject) -> None:
    total = sum(groups)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.parquet"
        with pq.ParquetWriter(path, pa.schema([("n", pa.int64())])) as writer:
            for i, size in enumerate(groups):
                first = sum(groups[:i])
                writer.write_table(pa.table({"n": list(range(first, first + size))}))
        rows = Slices(path)
        assert len(rows) == total
        for _ in range(4):
            start = data.draw(st.integers(0, total))
            stop = data.draw(st.integers(start, total + 2))
            assert rows(start, stop)["n"].to_pylist() == list(range(start, min(stop, total)))


def test_parquet_files_of_a_file_a_directory_and_an_artifact(tmp_path: Path) -> None:
    files = [tmp_path / "data" / f"{name}.parquet" for name in ("a", "b")]
    for file in files:
        write_parquet(pa.table({"n": [1]}), file)
    assert parquet_files(files[0]) == files[:1]
    assert parquet_files(tmp_path / "data") == parquet_files(tmp_path) == files
