"""Files and directories whole or not at all, on a real disk that is full: for a moment, or for good."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from aqe import storage
from aqe.align.curves import plot_curves
from aqe.artifact import MANIFEST, make, read_parquet, write_parquet, write_text
from aqe.errors import StorageError
from aqe.report.style import new, save
from tests.conftest import PLATFORM
from tests.tools.small_disk import SmallDisk, small_disk

DATA = np.random.default_rng(0).random(200_000)  # incompressible, larger than what a full disk may still hold


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 8) as mounted:
        yield mounted


def directory(path: Path) -> None:
    def write(part: Path) -> None:
        part.mkdir()
        (part / "a").write_bytes(DATA.tobytes())

    storage.put(path, write)


WRITERS: dict[str, Callable[[Path], object]] = {
    "parquet": lambda path: write_parquet(pa.table({"x": DATA}), path),
    "text": lambda path: write_text("x" * DATA.nbytes, path),
    "safetensors": lambda path: storage.put(path, lambda part: save_file({"x": DATA}, part)),
    "directory": directory,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_full_for_good_is_a_clear_error_and_leaves_what_was_there(
    kind: str, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    old = disk.path / "old"
    WRITERS[kind](old)
    before = {p: p.read_bytes() for p in disk.path.rglob("*") if p.is_file()}
    disk.fill()
    for path in (old, disk.path / "new"):
        with pytest.raises(StorageError, match=r"(?i)no space left.*3 times.*run again") as caught:
            WRITERS[kind](path)
        assert str(path) in str(caught.value)
    disk.free()
    assert {p: p.read_bytes() for p in disk.path.rglob("*") if p.is_file()} == before
    assert {p.name for p in disk.path.iterdir()} == {"old"}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_full_for_a_moment_costs_that_moment(
    kind: str, disk: SmallDisk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    def say(line: str) -> None:
        print(line)
        refused.set()

    monkeypatch.setattr(storage, "say", say)
    disk.fill()

    def make_room() -> None:
        refused.wait()
        disk.free()

    thread = threading.Thread(target=make_room)
    thread.start()
    WRITERS[kind](disk.path / "new")
    thread.join()
    said = capsys.readouterr().out.splitlines()
    assert said and all("tried again in" in line and str(disk.path / "new") in line for line in said)
    assert {p.name for p in disk.path.iterdir()} == {"new"}
    new = disk.path / "new"
    assert sum(p.stat().st_size for p in (new.iterdir() if new.is_dir() else [new])) >= DATA.nbytes


def test_a_picture_on_a_full_disk_is_a_clear_error_and_leaves_nothing(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES", ())
    curves = {"rsft": pa.table({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]})}
    figure, axes = new(3.0)
    axes.plot(DATA[:100])
    pictures: tuple[Callable[[], object], ...] = (
        lambda: plot_curves(disk.path / "plots" / "curves.png", curves),
        lambda: save(figure, disk.path, "noise", "Noise", "One hundred numbers."),
    )

    def files() -> set[str]:
        return {p.name for p in disk.path.rglob("*") if p.is_file()}

    disk.fill()
    for draw in pictures:
        with pytest.raises(StorageError, match="No space left"):
            draw()
    assert files() == {".ballast"}
    disk.free()
    for draw in pictures:
        draw()
    assert files() == {"curves.png", "noise.png"}


def test_an_artifact_on_a_full_disk_is_unfinished_and_made_when_there_is_room(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES", ())

    def build(out: Path) -> dict[str, int]:
        write_parquet(pa.table({"x": DATA}), out / "data.parquet")
        return {"rows": len(DATA)}

    (disk.path / "runs").mkdir()
    disk.fill()
    with pytest.raises(StorageError, match="No space left"):
        make(disk.path / "runs", "stage", config={}, inputs={}, build=build)
    assert not list(disk.path.rglob(MANIFEST)) and not list(disk.path.rglob("data.parquet"))
    disk.free()
    made = make(disk.path / "runs", "stage", config={}, inputs={}, build=build)
    assert read_parquet(made.path / "data.parquet")["x"].to_numpy().tolist() == DATA.tolist()


LUCENE = """
import sys
from pathlib import Path
from aqe import storage
from aqe.config.data import IndexConfig
from aqe.errors import StorageError
from aqe.index.lucene import build_index

corpus, out, pauses = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
storage.PAUSES = pauses
if pauses:
    storage.say = lambda line: (print(line), Path(sys.argv[2], "../.ballast").unlink())
try:
    print(build_index(out, corpus, IndexConfig(threads=1), print)["passages"])
except StorageError as error:
    print("StorageError:", error)
"""


def test_lucene_does_not_lose_passages_in_silence(disk: SmallDisk, tmp_path: Path) -> None:
    """Anserini logs that the disk is full and goes on: the index would lack what did not fit."""
    words = [f"w{x}" for x in DATA[:100_000]]
    rows = {"docid": [str(i) for i in range(1000)], "title": [""] * 1000}
    write_parquet(
        pa.table({**rows, "text": [" ".join(words[100 * i :][:100]) for i in range(1000)]}), tmp_path / "c/0.parquet"
    )
    (disk.path / "runs").mkdir()

    def build(pauses: str) -> str:
        command = [sys.executable, "-c", LUCENE, str(tmp_path / "c"), str(disk.path / "runs"), pauses]
        env = {**os.environ, "PYTHONPATH": str(PLATFORM)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    disk.fill()
    said = build("()").splitlines()
    assert said[-1].startswith("StorageError:") and "of 1000 passages" in said[-1]
    assert not list((disk.path / "runs").iterdir())
    said = build("(0.1,)").splitlines()
    assert "tried again in 0.1 s" in said[-3] and said[-1] == "1000"
    assert [p.name for p in (disk.path / "runs").iterdir()] == ["lucene"]


@pytest.mark.parametrize(("umask", "around", "file", "inner"), [
    (0o022, 0o755, 0o644, 0o755),
    (0o077, 0o755, 0o644, 0o755),
    (0o077, 0o750, 0o640, 0o750),
    (0o077, 0o700, 0o600, 0o700),
    (0o022, 0o700, 0o644, 0o755),
])  # fmt: skip
def test_nothing_is_less_readable_than_its_directory(
    umask: int, around: int, file: int, inner: int, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(around)

    def write(part: Path) -> None:
        (part / "deeper").mkdir(parents=True)
        # As the library does it: for the owner alone.
        save_file({"x": np.zeros(3)}, part / "model.safetensors")
        (part / "deeper" / "config.json").write_text("{}")

    before = os.umask(umask)
    try:
        storage.put(shared / "model", write)
        storage.put(shared / "rows.txt", lambda part: part.write_text("rows"))
        private = shared / "private"
        storage.put(private, lambda part: os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600)))
    finally:
        os.umask(before)
    modes = {str(p.relative_to(shared)): stat.S_IMODE(p.stat().st_mode) for p in shared.rglob("*")}
    # What was written for more readers than the directory has stays so.
    readers = around & 0o444
    assert {name: mode & readers for name, mode in modes.items()} == dict.fromkeys(modes, readers)
    assert modes["rows.txt"] == file and modes["model"] == modes["model/deeper"] == inner
    assert modes["model/model.safetensors"] == modes["private"] == 0o600 | readers
