"""Artifacts: whole or not at all, made once, named by what they depend on, verified before they are used."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from aqe import storage
from aqe.artifact import (
    CHANGING,
    MANIFEST,
    Artifact,
    Slices,
    Wanted,
    load,
    make,
    make_all,
    parquet_files,
    read_parquet,
    verify,
    write_parquet,
    write_text,
)
from aqe.errors import ArtifactError, StorageError
from aqe.expand.settings import SETTINGS


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
    again = make(tmp_path, "stage", config={"a": 1}, inputs={}, build=build_counting(calls))
    assert len(calls) == 1
    assert first == again
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


def wanted(*numbers: int) -> list[Wanted]:
    return [Wanted(f"stage_{number}", {"number": number}, {}) for number in numbers]


def test_several_are_built_together_each_whole_by_itself(tmp_path: Path) -> None:
    given: list[dict[int, str]] = []

    def build(missing: Mapping[int, Path]) -> Iterator[tuple[int, dict[str, int]]]:
        given.append({i: path.name.partition("-")[0] for i, path in missing.items()})
        for i, path in missing.items():
            if "2" in path.name.partition("-")[0] and len(given) == 1:
                raise RuntimeError("killed")
            write_parquet(pa.table({"n": [i]}), path / "data.parquet")
            yield i, {"rows_out": i}

    (first,) = make_all(tmp_path, wanted(1), build)
    given.clear()
    told: list[tuple[str, int]] = []
    with pytest.raises(RuntimeError):
        make_all(
            tmp_path, wanted(0, 1, 2, 3), build, made=lambda _, one: told.append((one.stage, one.stats["rows_out"]))
        )
    assert (given, told) == ([{0: "stage_0", 2: "stage_2", 3: "stage_3"}], [("stage_0", 0)])
    # What was whole before the death is not built again, and what is wanted twice is built once.
    found: list[str] = []
    made = make_all(tmp_path, wanted(3, 0, 1, 2, 3), build, found=lambda title, _: found.append(title))
    assert given[1:] == [{0: "stage_3", 3: "stage_2"}]
    assert found == ["stage_0", "stage_1"]
    assert [one.stage for one in made] == [f"stage_{i}" for i in (3, 0, 1, 2, 3)]
    assert made[0] == made[4] and made[2] == first
    assert not list(tmp_path.glob("*/unfinished.json"))


def test_one_that_another_process_builds_stops_them_all_and_leaves_no_lock(tmp_path: Path) -> None:
    def build(missing: Mapping[int, Path]) -> Iterator[tuple[int, dict[str, int]]]:
        raise AssertionError("nothing may be built")

    (done,) = make_all(tmp_path, wanted(1), lambda missing: ((i, {}) for i in missing))
    (done.path / MANIFEST).unlink()
    with FileLock(tmp_path / f".{done.path.name}.lock"), pytest.raises(ArtifactError, match="another process"):
        make_all(tmp_path, wanted(0, 1, 2), build)
    assert len(make_all(tmp_path, wanted(0, 1, 2), lambda missing: ((i, {}) for i in missing))) == 3


def test_damaged_manifest_is_named(tmp_path: Path) -> None:
    done = make(tmp_path, "stage", config={}, inputs={}, build=lambda out: {})
    (done.path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        load(done.path)


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", '{"stage": "s", "fingerprint": "f", "config": {}, "inputs": {}}', b"\xff\xfe", "files"],
)
def test_a_manifest_that_is_none_is_named_in_one_line(tmp_path: Path, manifest: str | bytes) -> None:
    done = make(tmp_path, "stage", config={}, inputs={}, build=lambda out: {})
    if manifest == "files":
        manifest = json.dumps({**done.manifest, "files": {"data.parquet": 3}})
    (done.path / MANIFEST).write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    with pytest.raises(ArtifactError, match=f"{MANIFEST} .*aqe verify {tmp_path} --remove") as caught:
        make(tmp_path, "stage", config={}, inputs={}, build=lambda out: {})
    assert "\n" not in str(caught.value)


#: What stages leave, in small: units, an index, a model.
PARTS = ["data/000.parquet", "data/001.parquet", "impacts-00000-of-00001.safetensors", "model/model.safetensors"]


def build_parts(out: Path) -> dict[str, int]:
    for number, name in enumerate([*PARTS, *CHANGING]):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(bytes([number]) * 1000)
    (out / "data" / ".half.part").write_bytes(b"nobody's")
    (out / "lucene").symlink_to(Path(__file__).parent)
    return {}


def made_of_parts(root: Path) -> Artifact:
    return make(root, "parts", config={}, inputs={}, build=build_parts)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_manifest_states_each_file_that_never_changes(tmp_path: Path) -> None:
    artifact = made_of_parts(tmp_path)
    assert artifact.files is not None and sorted(artifact.files) == sorted(PARTS)
    assert {stated["bytes"] for stated in artifact.files.values()} == {1000}
    assert sorted(p.name for p in artifact.path.iterdir() if p.is_file()) == [PARTS[2], MANIFEST]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("harm", ["flipped", "truncated", "grown", "missing"])
def test_what_is_not_as_it_was_made_is_named_and_not_read(tmp_path: Path, name: str, harm: str) -> None:
    file = made_of_parts(tmp_path).path / name
    if harm == "flipped":
        flip(file)
    elif harm == "missing":
        file.unlink()
    else:
        os.truncate(file, 999 if harm == "truncated" else 1001)
    word = {"flipped": "other bytes", "truncated": "shorter", "grown": "longer", "missing": "missing"}[harm]
    artifact = next(tmp_path.glob("parts-*"))
    for use in (lambda: made_of_parts(tmp_path), lambda: load(artifact), lambda: verify(file)):
        with pytest.raises(ArtifactError, match=f"{file} .*{word}.*aqe verify {tmp_path} --remove"):
            use()


def test_a_part_is_verified_by_itself(tmp_path: Path) -> None:
    artifact = made_of_parts(tmp_path)
    flip(artifact.path / "data" / "001.parquet")
    for part in ("data/000.parquet", "model", "impacts-00000-of-00001.safetensors", "lucene"):
        verify(artifact.path / part)
    for part in ("data/001.parquet", "data", ""):
        with pytest.raises(ArtifactError, match="other bytes"):
            verify(artifact.path / part)


def test_card_and_settings_beside_a_model_may_change(tmp_path: Path) -> None:
    artifact = made_of_parts(tmp_path)
    for name in CHANGING:
        write_text("anew", artifact.path / name)
    assert made_of_parts(tmp_path) == artifact
    assert f"model/{SETTINGS}" in CHANGING


def test_a_file_is_read_once_and_again_when_its_time_is_another(tmp_path: Path) -> None:
    file = made_of_parts(tmp_path).path / PARTS[0]
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    # Not read: its size and its time are as they were when it was made here.
    made_of_parts(tmp_path)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(ArtifactError, match="other bytes"):
        made_of_parts(tmp_path)
    flip(file)
    made_of_parts(tmp_path)
    # As it is now is what is remembered.
    now = file.stat()
    flip(file)
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns))
    made_of_parts(tmp_path)


def test_without_a_memory_every_look_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AQE_CACHE", str(tmp_path / "file"))
    file = made_of_parts(tmp_path).path / PARTS[0]
    before = file.stat()
    made_of_parts(tmp_path)
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match="other bytes"):
        made_of_parts(tmp_path)


def test_another_node_waits_for_a_file_that_it_sees_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = made_of_parts(tmp_path)
    file, waited = artifact.path / PARTS[0], artifact.path / "waited"
    file.rename(waited)
    monkeypatch.setattr(storage, "PAUSES", (0.0,))
    monkeypatch.setattr(storage, "say", lambda line: waited.rename(file))
    verify(artifact.path, patient=True)
    monkeypatch.setattr(storage, "say", lambda line: None)
    file.rename(waited)
    with pytest.raises(StorageError, match=f"{file} cannot be read"):
        verify(artifact.path, patient=True)


def test_what_an_older_version_made_is_read_as_before(tmp_path: Path) -> None:
    artifact = made_of_parts(tmp_path)
    old = {key: value for key, value in artifact.manifest.items() if key != "files"}
    write_text(json.dumps(old), artifact.path / MANIFEST)
    flip(artifact.path / PARTS[0])
    assert made_of_parts(tmp_path).files is None
    verify(artifact.path / "data")


def test_what_lies_in_no_artifact_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"name": "a page"}')
    verify(tmp_path / "model")
    # Called as artifacts are, and none of ours.
    (tmp_path / "scratch-0123456789abcdef").mkdir()
    verify(tmp_path / "scratch-0123456789abcdef" / "model", patient=True)


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
