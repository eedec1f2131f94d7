"""The list of runs: stages, size, age, report."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from aqe.artifact import MANIFEST
from aqe.errors import InputError
from aqe.run import Run
from aqe.runs import lines, newest_report, summaries
from aqe.sizes import age, bytes_of, size
from tests.test_cli import aqe


def holding(bytes_: int) -> Callable[[Path], Mapping[str, Any]]:
    def build(out: Path) -> Mapping[str, Any]:
        (out / "data.bin").write_bytes(b"x" * bytes_)
        return {}

    return build


def killed(out: Path) -> Mapping[str, Any]:
    (out / "half").write_bytes(b"x" * 10)
    raise KeyboardInterrupt


def make_run(root: Path, *, report: bool = True, unfinished: bool = False) -> None:
    run = Run(root, lambda line: None)
    corpus = run.make("corpus", config={}, inputs={}, build=holding(2_000_000))
    if unfinished:
        with pytest.raises(KeyboardInterrupt):
            run.make("index", config={}, inputs={"corpus": corpus}, build=killed)
    if report:
        made = run.make("report", config={}, inputs={"corpus": corpus}, build=holding(1_000))
        (made.path / "report.html").write_text("<p>")
        (root / "report").symlink_to(made.path.name)


def test_runs_are_listed_with_stages_size_age_and_report(tmp_path: Path) -> None:
    make_run(tmp_path / "old")
    make_run(tmp_path / "new", report=False, unfinished=True)
    (tmp_path / "something else").mkdir()
    for path in (tmp_path / "old").glob("*-*/manifest.json"):
        os.utime(path, (1_000, 1_000))
    done = aqe("runs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    old, new = done.stdout.splitlines()
    page = tmp_path / "old" / "report" / "report.html"
    assert old.split("  ")[0] == "old" and "2 stages complete " in old and "2.0 MB" in old and old.endswith(str(page))
    assert " days ago " in old
    assert "1 stage complete, 1 unfinished" in new and "just now" in new and new.endswith("no report yet")
    # One run by itself is listed too.
    assert [one.root.name for one in summaries(tmp_path / "new")] == ["new"]
    assert next(lines(tmp_path / "old", now=1_000 + 3 * 3_600)).count("3 hours ago") == 1


def test_the_newest_report_is_what_the_link_leads_to(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = Run(tmp_path, lambda line: None)
    later = run.make("report", config={"seed": 1}, inputs={}, build=holding(1))
    linked = (tmp_path / "report").resolve()
    assert newest_report(tmp_path) == linked != later.path
    (tmp_path / "report").unlink()
    os.utime(linked / MANIFEST, (1_000, 1_000))
    assert newest_report(tmp_path) == later.path


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        summaries(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        summaries(tmp_path / "nothing")


def test_what_a_link_leads_to_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"x" * 1_000_000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "file").symlink_to(tmp_path / "elsewhere" / "file")
    (tmp_path / "run" / "own").write_bytes(b"x" * 100)
    assert bytes_of(tmp_path / "run") == 100
    assert bytes_of(tmp_path / "run" / "own") == 100 and bytes_of(tmp_path / "nothing") == 0


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_234_567, "1.2 MB"), (123_456_789, "123 MB"), (999_999_999, "1.0 GB")],
)
def test_sizes(amount: int, shown: str) -> None:
    assert size(amount) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(5, "just now"), (60, "1 minute ago"), (7_300, "2 hours ago"), (90_000, "1 day ago")]
)
def test_ages(seconds: float, shown: str) -> None:
    assert age(seconds) == shown
