"""What is said of a plan on a machine without a GPU, and what is offered in its place."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aqe import advice
from aqe.advice import Cores, compare
from aqe.cost import CORE, Cost
from tests.test_cli import aqe
from tests.tools.small_project import write_project

#: 2 M tokens of 1.5 B parameters and as much training as of 1 M tokens; and what is small.
LARGE = Cost({"train": 1_000}, 20_000, 0, 2_000_000, {"rsft": 60}, 6e6, 1_500_000_000, 10**9)
LITTLE = replace(LARGE, generated=60_000, operations=180_000.0, parameters=135_000_000)
HERE = Cores(2, 32 * 10**9)


def test_hours_are_those_of_all_cores() -> None:
    generation, training = LARGE.hours(CORE)
    assert HERE.hours(LARGE) == (generation / 2, training / 2)
    first, *_ = compare(LARGE, HERE, lambda: LITTLE, "aqe run --small")
    # 2 M tokens at 280 * 135 / 1,500 tokens a second, 1 M at 192 * 135 / 1,500.
    assert first.startswith("No GPU is seen here: on 2 cores this takes up to 38 hours (22 hours to generate, 16 hours")
    one, *_ = compare(LARGE, Cores(1, 32 * 10**9), lambda: LITTLE, "aqe run --small")
    assert "on one core this takes up to 76 hours" in one


def test_the_small_run_is_offered_where_the_plan_is_long() -> None:
    *_, why, line = compare(LARGE, HERE, lambda: LITTLE, "aqe run --config mine.yaml --small")
    assert "200 queries of each source" in why and "takes up to 6 min" in why
    assert line == "  aqe run --config mine.yaml --small"
    # Not where it is short, and not in place of itself.
    assert len(list(compare(LITTLE, HERE, lambda: LITTLE, ""))) == 1
    assert len(list(compare(LARGE, HERE, None, ""))) == 1
    # Nothing is made up for a model whose size is not known.
    assert list(compare(replace(LARGE, parameters=None), HERE, lambda: LITTLE, "")) == []


def test_too_little_memory_is_told_and_the_small_run_offered() -> None:
    quick = replace(LARGE, generated=1_000, operations=1_000.0)
    _, warning, why, _ = compare(quick, Cores(2, 24 * 10**9), lambda: LITTLE, "")
    assert "takes 28.0 GB of memory or more, and this machine has 24.0 GB" in warning and "A first try" in why


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        ("/venv/bin/aqe", ["/venv/bin/aqe", "run"]),
        ("/src/aqe/__main__.py", [sys.executable, "-m", "aqe", "run"]),
        ("jobs/run_pipeline.py", [sys.executable, "jobs/run_pipeline.py"]),
    ],
)
def test_the_line_is_typed_as_this_one_was(program: str, typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "check"])
    assert advice._run() == typed


LONG = ("--set", "sample.num_samples=5000")


def test_check_says_it_from_any_directory(tmp_path: Path) -> None:
    """24 queries with 5,000 candidates each take hours; and the line that is offered passes the check too."""
    write_project(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    asked = ("--config", "../mine.yaml", "--set", "model.source=package:smollm2-135m-instruct", *LONG)
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    done = aqe("check", *asked, here=tmp_path / "elsewhere", **no_gpu)
    assert done.returncode == 0, done.stderr
    *_, hours, offer, line, last = done.stdout.splitlines()
    assert hours.startswith("No GPU is seen here: on ") and offer.startswith("A first try")
    assert last.endswith(str(tmp_path / "runs" / "mine"))
    assert line.split()[:4] == [sys.executable, "-m", "aqe", "run"] and line.endswith(" --small")
    # Without the model and the number that were typed.
    assert line.split()[4:] == ["--config", "../mine.yaml", "--small"]
    small = aqe("check", *line.split()[4:], here=tmp_path / "elsewhere", **no_gpu)
    assert small.returncode == 0, small.stderr
    assert "192 candidates" in small.stdout and "A first try" not in small.stdout and " min " in small.stdout


def test_where_a_cluster_does_the_work_nothing_is_said(tmp_path: Path) -> None:
    write_project(tmp_path)
    asked = ("--config", "mine.yaml", "--set", "model.source=package:smollm2-135m-instruct", *LONG)
    done = aqe("check", *asked, here=tmp_path, RAY_ADDRESS="10.0.0.1:6379")
    assert done.returncode == 0, done.stderr
    assert "No GPU" not in done.stdout
