"""What is broken in a run, or failed in it, is taken back with what was made from it, and made again."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from filelock import FileLock

from aqe.artifact import MANIFEST, UNFINISHED, Artifact, write_parquet
from aqe.errors import ArtifactError, InputError
from aqe.mend import made_from, members, retry_run
from aqe.pools import run_units
from aqe.run import Run
from aqe.units import Pool, Work, cut_units
from tests.test_artifact import flip
from tests.test_cli import aqe
from tests.test_units import SCHEMA, Numbers, Squares


class Loop:
    """A run in small: samples, ranks of them, a model of both, and another split that has nothing to do with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.built: list[str] = []

    def __call__(self) -> dict[str, Artifact]:
        run = Run(self.root, lambda line: None)
        samples = run.make("sample", config={}, inputs={"model": "base"}, build=self._build("sample"))
        ranks = run.make("rank", config={}, inputs={"samples": samples}, build=self._build("rank"))
        # Named by what it is asked alone, as candidates are: the artifact is a parent.
        model = run.make("align", config={}, inputs={"rows": "1"}, parents=(ranks,), build=self._build("align"))
        other = run.make("other", config={}, inputs={}, build=self._build("other"))
        report = run.make("report", config={}, inputs={"model": model, "other": other}, build=self._build("report"))
        if not (self.root / "report").is_symlink():
            (self.root / "report").symlink_to(report.path.name)
        return {a.stage: a for a in (samples, ranks, model, other, report)}

    def _build(self, stage: str) -> Callable[[Path], Mapping[str, Any]]:
        def build(out: Path) -> Mapping[str, Any]:
            self.built.append(stage)
            (out / "data").mkdir(exist_ok=True)
            (out / "data" / "000.parquet").write_bytes(stage.encode() * 100)
            return {}

        return build


def test_a_whole_run_is_told_line_by_line(tmp_path: Path) -> None:
    made = Loop(tmp_path)()
    done = aqe("verify", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted(a.path.name for a in made.values())
    assert all(": whole, 1 files of " in line for line in lines)


def test_what_is_broken_is_removed_with_what_was_made_from_it_and_made_again(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    made = loop()
    kept = (made["other"].path / MANIFEST).stat().st_mtime_ns
    file = made["rank"].path / "data" / "000.parquet"
    before = file.stat()
    flip(file)
    # As memory has it, nothing has changed: a run's owner asks for more than that.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = aqe("verify", str(tmp_path))
    assert done.returncode == 4
    assert f"{made['rank'].path.name}: BROKEN: {file} holds other bytes" in done.stdout
    assert done.stdout.count("BROKEN") == 1 and len(members(tmp_path)) == 5

    done = aqe("verify", str(tmp_path), "--remove")
    assert done.returncode == 0, done.stderr
    for stage in ("rank", "align", "report"):
        assert f"{made[stage].path.name}: removed" in done.stdout
    assert members(tmp_path) == sorted([made["sample"].path, made["other"].path])
    assert not (tmp_path / "report").is_symlink()
    loop.built.clear()
    assert loop() == {**loop(), "sample": made["sample"], "other": made["other"]}
    assert loop.built == ["rank", "align", "report"]
    assert (made["other"].path / MANIFEST).stat().st_mtime_ns == kept
    assert aqe("verify", str(tmp_path)).returncode == 0


def test_a_broken_manifest_is_removed_too(tmp_path: Path) -> None:
    made = Loop(tmp_path)()
    (made["align"].path / MANIFEST).write_text("{")
    done = aqe("verify", str(tmp_path), "--remove")
    assert f"{made['align'].path.name}: BROKEN: {made['align'].path / MANIFEST} is not JSON" in done.stdout
    assert members(tmp_path) == sorted(made[stage].path for stage in ("sample", "rank", "other"))


def test_unfinished_work_says_what_it_is_made_from(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    made = loop()

    def killed(out: Path) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    run = Run(tmp_path, lambda line: None)
    for stage, parent in (("search", "rank"), ("elsewhere", "other")):
        with pytest.raises(KeyboardInterrupt):
            run.make(stage, config={}, inputs={"from": made[parent]}, build=killed)
    (search,), (elsewhere,) = tmp_path.glob("search-*"), tmp_path.glob("elsewhere-*")
    assert json.loads((search / UNFINISHED).read_text()) == {"parents": [made["rank"].path.name]}
    assert "unfinished" in aqe("verify", str(tmp_path)).stdout
    found = made_from(tmp_path, [made["sample"].path])
    assert found[0] == made["rank"].path and set(found) == {made[s].path for s in ("rank", "align", "report")} | {
        search
    }
    # Where nobody says it, it may be made from anything.
    (elsewhere / UNFINISHED).unlink()
    assert elsewhere in made_from(tmp_path, [made["sample"].path])


def test_nothing_is_removed_from_under_a_process_that_works(tmp_path: Path) -> None:
    made = Loop(tmp_path)()
    (made["sample"].path / "data" / "000.parquet").unlink()
    with FileLock(tmp_path / f".{made['other'].path.name}.lock"):
        done = aqe("verify", str(tmp_path), "--remove")
    assert done.returncode == 4 and "is being built by another process" in done.stderr
    assert len(members(tmp_path)) == 5


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no artifact"):
        members(tmp_path)
    done: subprocess.CompletedProcess[str] = aqe("verify", str(tmp_path / "nothing"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def times(artifact: Artifact) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (artifact.path / "data").glob("*.parquet")}


def test_rows_that_failed_are_tried_again_and_no_others(ray_cluster: None, tmp_path: Path) -> None:
    # Squares fails with the unit of 40 until this file is there.
    root, mended = tmp_path / "run", tmp_path / "mended"
    run = Run(root, lambda line: None, max_dead_share=1)
    built: list[str] = []

    def sample(out: Path) -> Mapping[str, Any]:
        built.append("sample")
        work = Work(Squares, {"mended": mended}, Numbers(), SCHEMA, "numbers")
        return run_units(run, "sample", out, cut_units(60, 5), work, Pool(2, num_cpus=0.5))

    def rank(out: Path) -> Mapping[str, Any]:
        built.append("rank")
        return {}

    def loop() -> tuple[Artifact, Artifact, Artifact]:
        samples = run.make("sample", config={}, inputs={}, build=sample)
        ranks = run.make("rank", config={}, inputs={"samples": samples}, build=rank)
        return samples, ranks, run.make("other", config={}, inputs={}, build=rank)

    samples, ranks, other = loop()
    assert samples.stats["dead"] == 6
    assert samples.stats["dead_reasons"] == {"ValueError: forty": 5, "unlucky": 1}
    before, built[:] = times(samples), []
    mended.touch()

    done = aqe("retry", str(root))
    assert done.returncode == 0, done.stderr
    gone, taken, last = done.stdout.splitlines()
    assert gone.startswith(f"{ranks.path.name}: removed")
    assert (
        taken == f"{samples.path.name}: 6 rows failed in 2 units (5 x ValueError: forty; 1 x unlucky); 10 others stay"
    )
    assert str(root) in last
    assert members(root) == sorted([samples.path, other.path])

    again, _, _ = loop()
    assert built == ["sample", "rank"]
    after = times(again)
    assert {name for name in before if after[name] != before[name]} == {"000000010-000000015", "000000040-000000045"}
    assert (again.path, again.stats["dead"], again.stats["dead_reasons"]) == (samples.path, 1, {"unlucky": 1})
    assert again.read()["n"].to_pylist() == [n for n in range(60) if n != 13]


def failing(stage: str, units: int) -> Callable[[Path], Mapping[str, Any]]:
    """A stage of so many units, a row of the last of which failed."""

    def build(out: Path) -> Mapping[str, Any]:
        for unit in range(units):
            write_parquet(pa.table({"n": [unit]}), out / "data" / f"{unit}.parquet")
        write_parquet(pa.table({"reason": [f"{stage} failed"]}), out / "dead_letters" / f"{units - 1}.parquet")
        return {"dead": 1}

    return build


def test_a_later_stage_that_failed_too_is_made_again_as_a_whole(tmp_path: Path) -> None:
    run, said = Run(tmp_path, lambda line: None), list[str]()
    samples = run.make("sample", config={}, inputs={}, build=failing("sample", 3))
    run.make("rank", config={}, inputs={"samples": samples}, build=failing("rank", 3))
    assert retry_run(tmp_path, said.append)
    assert members(tmp_path) == [samples.path] and not (samples.path / MANIFEST).exists()
    assert sorted(path.name for path in (samples.path / "data").iterdir()) == ["0.parquet", "1.parquet"]
    assert not list((samples.path / "dead_letters").iterdir())
    # Unfinished now: nothing more to take back.
    assert not retry_run(tmp_path, said.append)


def test_units_that_would_stay_are_verified_before(tmp_path: Path) -> None:
    samples = Run(tmp_path, lambda line: None).make("sample", config={}, inputs={}, build=failing("sample", 3))
    flip(samples.path / "data" / "0.parquet")
    with pytest.raises(ArtifactError, match=r"0\.parquet holds other bytes"):
        retry_run(tmp_path, lambda line: None)
    assert (samples.path / MANIFEST).exists()


def test_rows_that_were_refused_on_reading_are_not_tried_again(tmp_path: Path) -> None:
    def build(out: Path) -> Mapping[str, Any]:
        write_parquet(pa.table({"reason": ["no text"]}), out / "dead_letters.parquet")
        return {"dead": 1}

    corpus = Run(tmp_path, lambda line: None).make("corpus", config={}, inputs={}, build=build)
    assert "nothing to retry" in aqe("retry", str(tmp_path)).stdout
    assert (corpus.path / MANIFEST).exists()
