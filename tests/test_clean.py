"""What can go from a run, what stays, and that the same command never makes anything again because of it."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from aqe import chain
from aqe.artifact import MANIFEST, UNFINISHED, Artifact, load
from aqe.clean import Plan, clean, plan
from aqe.errors import ArtifactError
from aqe.mend import members, verify_run
from aqe.run import Run
from aqe.runs import newest_report
from tests.test_cli import aqe


class Command:
    """A run in small, as one command makes it: a corpus, a setting chosen on dev, a model for each β, a report."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.built: list[str] = []

    def __call__(self, beta: float, *, until: str = "", note: bool = True) -> dict[str, Artifact]:
        run = Run(self.root, lambda line: None)

        def make(stage: str, config: Mapping[str, Any], *inputs: Artifact) -> Artifact:
            named = {one.path.name: one for one in inputs}
            return run.make(stage, config=config, inputs=named, build=self._build(stage, stage == until))

        corpus = make("corpus", {})
        # No artifact names the tuning: only what was chosen goes on.
        tuned = make("tune", {"beta": beta} if beta > 1 else {}, corpus)
        ranks = make("rank", {"chosen": 1}, corpus)
        model = make("align_dpo", {"beta": beta}, ranks)
        searched = make("search", {}, model)
        report = make("report", {}, searched)
        (self.root / "report").unlink(missing_ok=True)
        (self.root / "report").symlink_to(report.path.name)
        if note:
            chain.write(self.root, report.path.name, run.used)
        return {a.stage: a for a in (corpus, tuned, ranks, model, searched, report)}

    def _build(self, stage: str, killed: bool) -> Callable[[Path], Mapping[str, Any]]:
        def build(out: Path) -> Mapping[str, Any]:
            self.built.append(stage)
            (out / "data.bin").write_bytes(stage.encode() * 1_000)
            if killed:
                raise KeyboardInterrupt
            return {}

        return build


def names(parts: Plan) -> set[str]:
    return {part.path.name for part in parts.go}


def until_later(root: Path) -> None:
    """As if what was made so far were an hour old: manifests state whole seconds."""
    for file in root.glob(f"*-*/{MANIFEST}"):
        manifest = json.loads(file.read_text())
        manifest["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3_600))
        file.write_text(json.dumps(manifest))
    for file in (*root.glob("*-*/*"), *root.glob("*-*")):
        os.utime(file, (time.time() - 3_600,) * 2, follow_symlinks=False)
    noted = root / chain.CHAIN
    if noted.exists():
        was = json.loads(noted.read_text())
        noted.write_text(json.dumps({**was, "written": time.time() - 3_500}))


def test_what_another_configuration_made_can_go_and_the_same_command_makes_nothing_again(tmp_path: Path) -> None:
    command = Command(tmp_path)
    old = command(0.1)
    until_later(tmp_path)
    new = command(0.3)
    assert names(plan(tmp_path)) == {old["align_dpo"].path.name, old["search"].path.name}

    done = aqe("clean", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{old['align_dpo'].path.name}: the newest report does not use it" in done.stdout
    assert "Nothing was removed" in done.stdout and old["search"].path.exists()
    assert f"{old['report'].path.name}: an older report" in done.stdout

    done = aqe("clean", str(tmp_path), "--remove")
    assert done.returncode == 0, done.stderr
    assert "Nothing can go." in done.stdout
    assert not old["align_dpo"].path.exists() and not old["search"].path.exists()
    # An older report is a result: it stays, whole.
    assert load(old["report"].path).stage == "report"
    assert verify_run(tmp_path, lambda line: None) == []
    command.built.clear()
    assert command(0.3) == new and command.built == []
    # The other one works too: it makes what is gone.
    assert {a.path for a in command(0.1).values()} == {a.path for a in old.values()}
    assert command.built == ["align_dpo", "search"]


def test_what_a_setting_was_chosen_by_stays_though_no_manifest_names_it(tmp_path: Path) -> None:
    made = Command(tmp_path)(0.1)
    assert made["tune"].path.name not in {n for a in made.values() for n in a.parents}
    until_later(tmp_path)
    assert not plan(tmp_path).go


def test_without_a_note_of_what_the_report_uses_everything_stays(tmp_path: Path) -> None:
    command = Command(tmp_path)
    command(0.1, note=False)
    command(0.3, note=False)
    found = plan(tmp_path)
    assert not found.go and len(found.keep) == len(members(tmp_path))
    assert all("Run its command once more" in part.why for part in found.keep)
    until_later(tmp_path)
    command(0.3)
    assert len(plan(tmp_path).go) == 2
    # A note of another report is none.
    assert chain.read(tmp_path, "report-0000000000000000") is None
    (tmp_path / chain.CHAIN).write_text("{")
    assert not plan(tmp_path).go


def test_a_run_that_has_no_report_yet_keeps_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Command(tmp_path)(0.1, until="align_dpo")
    until_later(tmp_path)
    found = plan(tmp_path)
    assert not found.go and all("no report yet" in part.why for part in found.keep)


def test_half_made_work_can_go_once_a_later_report_does_without_it(tmp_path: Path) -> None:
    command = Command(tmp_path)
    command(0.1)
    until_later(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        command(0.3, until="search")
    # Begun after the report: the interrupted command goes on with it, and with what it was made from.
    found = plan(tmp_path)
    assert not found.go
    assert any("has not ended" in part.why for part in found.keep)
    until_later(tmp_path)
    command(0.1)
    found = plan(tmp_path)
    half = next(part for part in found.go if not (part.path / MANIFEST).exists())
    assert "half-made" in half.why and half.path.name.startswith("search-") and len(found.go) == 2


def test_what_newer_work_was_made_from_stays_with_it(tmp_path: Path) -> None:
    command = Command(tmp_path)
    old = command(0.3)
    until_later(tmp_path)
    command(0.1)
    until_later(tmp_path)
    assert old["align_dpo"].path.name in names(plan(tmp_path))
    # The interrupted command found the old model and began a search with it.
    Run(tmp_path, lambda line: None).make("late", config={}, inputs={"m": old["align_dpo"]}, build=lambda out: {})
    found = plan(tmp_path)
    assert names(found) == {old["search"].path.name}
    assert any(part.why.endswith("was made from it") for part in found.keep)
    # Where it does not say what it was made from, it may be any of them.
    late = next(tmp_path.glob("late-*"))
    (late / MANIFEST).rename(late / "gone")
    (late / UNFINISHED).write_text("{")
    assert not plan(tmp_path).go


def leftover(path: Path, ending: str = "part") -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{ending}")


def test_what_killed_processes_left_goes(tmp_path: Path) -> None:
    made = Command(tmp_path)(0.1)
    gone, part = leftover(tmp_path / "rank-0123", "gone"), leftover(made["rank"].path / "data.bin")
    (gone / "data").mkdir(parents=True)
    (gone / "data" / "0.parquet").write_bytes(b"x" * 500)
    part.write_bytes(b"x" * 300)
    with pytest.raises(KeyboardInterrupt):
        Command(tmp_path)(0.3, until="align_dpo")
    unfinished = next(path for path in members(tmp_path) if not (path / MANIFEST).exists())
    at_work = leftover(unfinished / "data.bin")
    at_work.write_bytes(b"x")
    found = plan(tmp_path)
    assert {p.path: p.bytes for p in found.go} == {gone: 500, part: 300}
    clean(tmp_path, lambda line: None)
    # A worker may be writing where work goes on.
    assert not gone.exists() and not part.exists() and at_work.exists()
    assert verify_run(tmp_path, lambda line: None) == []


def test_checkpoints_go_when_training_has_ended_and_not_before(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda line: None)

    def train(*, ended: bool, killed: bool) -> Callable[[Path], Mapping[str, Any]]:
        def build(out: Path) -> Mapping[str, Any]:
            (out / "checkpoints" / "dpo").mkdir(parents=True, exist_ok=True)
            (out / "checkpoints" / "dpo" / "state").write_bytes(b"x" * 5_000)
            if ended:
                (out / "stats.json").write_text("{}")
            if killed:
                raise KeyboardInterrupt
            return {}

        return build

    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.make("align", config={"n": number}, inputs={}, build=train(ended=number == 0, killed=True))
    ended, going = sorted(members(tmp_path), key=lambda path: not (path / "stats.json").exists())
    # A manifest that names them is held to: without them the artifact would count as broken.
    stated = run.make("align", config={"n": 2}, inputs={}, build=train(ended=True, killed=False))
    found = plan(tmp_path)
    assert [(p.path, p.bytes) for p in found.go] == [(ended / "checkpoints", 5_000)]
    clean(tmp_path, lambda line: None)
    assert not (ended / "checkpoints").exists() and (ended / "stats.json").exists()
    assert (going / "checkpoints" / "dpo" / "state").exists() and load(stated.path)


def test_an_index_that_another_run_reads_stays(tmp_path: Path) -> None:
    command = Command(tmp_path / "one")
    old = command(0.1)
    until_later(tmp_path / "one")
    command(0.3)
    other = tmp_path / "two" / f"build_index-{'0' * 16}"
    other.mkdir(parents=True)
    (old["align_dpo"].path / "lucene").mkdir()
    (other / "lucene").symlink_to(old["align_dpo"].path / "lucene")
    assert names(plan(tmp_path / "one")) == {old["search"].path.name}


def test_nothing_is_removed_while_a_process_works_in_the_run(tmp_path: Path) -> None:
    command = Command(tmp_path)
    old = command(0.1)
    until_later(tmp_path)
    new = command(0.3)
    with FileLock(tmp_path / f".{new['rank'].path.name}.lock"), pytest.raises(ArtifactError, match="another process"):
        clean(tmp_path, lambda line: None)
    assert old["align_dpo"].path.exists()
    assert aqe("clean", str(tmp_path / "nothing")).returncode == 2


def test_a_run_notes_what_it_asks_for_made_or_found(tmp_path: Path) -> None:
    command = Command(tmp_path)
    made = command(0.1)
    report = newest_report(tmp_path)
    assert report is not None
    noted = chain.read(tmp_path, report.name)
    assert noted is not None and noted.artifacts == {a.path.name for a in made.values()}
    (tmp_path / chain.CHAIN).unlink()
    command.built.clear()
    assert command(0.1) == made and not command.built
    again = chain.read(tmp_path, report.name)
    assert again is not None and again.artifacts == noted.artifacts
