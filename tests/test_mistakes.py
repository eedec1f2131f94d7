"""Mistakes that people make, each through the command that they would type: one line, what to do, the exit code."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from aqe import Expander, cli
from aqe.connection import connect
from aqe.errors import KINDS, AqeError, DataError, InputError
from aqe.exits import quietly
from tests.test_cli import called
from tests.tools import tiny_model
from tests.tools.small_project import ROOT, SMALL, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("project")
    write_project(here)
    return here


@pytest.fixture
def here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil."""
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*assignments: str, config: str = "mine.yaml") -> tuple[int, str, str]:
    """Exit code, what was said, and the error of `aqe check`."""
    options = [x for assignment in (*SMALL, *assignments) for x in ("--set", assignment)]
    with patch.dict(os.environ):
        done = CliRunner().invoke(cli.app, ["check", "--config", config, *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def refused(done: tuple[int, str, str], code: int, *mentions: str) -> None:
    """One line, of the kind that ends with this code, that names all of `mentions`."""
    exit_code, _, error = done
    [line] = error.splitlines()
    assert exit_code == code, line
    assert KINDS[line.partition(": ")[0]].exit_code == code
    assert "Traceback" not in line and len(line) < 1_000
    for mention in mentions:
        assert mention in line, line


@pytest.mark.parametrize(
    ("assignment", "mentions"),
    [
        ("sample.num_sampels=3", ["sample.num_sampels", "'num_samples'"]),
        ("promt=passage", ["promt", "'prompt'"]),
        ("smaple.num_samples=3", ["smaple", "'sample'"]),
        ("align.dpo.betta=0.1", ["align.dpo.betta", "'beta'"]),
        ("models=[dpo, rsf]", ["'rsf'", "rsft"]),
        ("prompt=pasage", ["'pasage'", "'passage'"]),
        ("evaluate.systems=[bm25_tune]", ["evaluate.systems", "'bm25_tuned'"]),
        ("corpus.format=jsonll", ["corpus", "'jsonl'"]),
        ("sample.num_samples=many", ["sample.num_samples", "many"]),
        ("align.dpo.beta=0", ["align.dpo.beta"]),
        ("align.dpo.beta=-1", ["align.dpo.beta"]),
        ("sample.max_tokens=0", ["sample.max_tokens"]),
        ("sample.max_tokens=400", ["max_tokens is 400", "engine.max_model_len"]),
        ("sample.num_samples=1", ["DPO needs two candidates", "2 or more"]),
        ("sample.num_samples", ["--set", "key.path=value"]),
        ("corpus={", ["--set", "not YAML"]),
        ("corpus.path=nowhere.jsonl", ["corpus.path", "nowhere.jsonl does not exist", "below --base-dir"]),
        ("queries.dev.path=nowhere.jsonl", ["queries.dev.path", "nowhere.jsonl does not exist"]),
        ("corpus.path=empty", ["empty", "no file named *.jsonl"]),
        ("model.source=./nowhere", ["nowhere"]),
        ("model.source=./no_tokenizer", ["no_tokenizer", "tokenizer"]),
        ("model.source=./no_config", ["no_config", "config.json"]),
        ("model.source=./cut_weights", ["cut_weights", "model.safetensors"]),
        ("model.source=./broken_header", ["broken_header", "model.safetensors"]),
        ("index.path=.", ["index.path", "is not a Lucene index"]),
        ("corpus={format: anserini, path: .}", ["corpus.path", "is not a Lucene index"]),
        ("index.language=xx", ["index.language 'xx'", "en", "zh"]),
        ("index.language=th", ["index.language 'th'", "Thai"]),
        ("runs_dir=corpus.jsonl", ["runs_dir", "corpus.jsonl is a file"]),
        ("runs_dir=corpus.jsonl/below", ["runs_dir", "corpus.jsonl is a file"]),
        ("name=my.run", ["name", "my.run"]),
        ("name=..", ["name"]),
    ],
)
def test_the_configuration(here: Path, assignment: str, mentions: list[str]) -> None:
    (here / "empty").mkdir()
    for name, without in (("no_tokenizer", "token*"), ("no_config", "config.json")):
        shutil.copytree(here / "model", here / name, ignore=shutil.ignore_patterns(without, "*.jinja"))
    for name in ("cut_weights", "broken_header"):
        shutil.copytree(here / "model", here / name)
        weights = here / name / "model.safetensors"
        data = weights.read_bytes()
        weights.write_bytes(data[: len(data) // 2] if name == "cut_weights" else data[:8] + b"x" * 20 + data[28:])
    refused(check(assignment), 2, *mentions)
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("- a list\n", ["must hold keys and values", "list"]),
        ("corpus: {format: jsonl\n", ["not YAML", "line"]),
        ("", ["must hold keys and values"]),
    ],
)
def test_a_file_that_is_no_configuration(here: Path, text: str, mentions: list[str]) -> None:
    (here / "bad.yaml").write_text(text)
    refused(check(config="bad.yaml"), 2, "bad.yaml", *mentions)


def test_a_preset_and_a_job_by_nearly_their_names(here: Path) -> None:
    refused(check(config="quickstat"), 2, "'quickstart'")
    done = called("-m", "cluster.local.submit", "--job", "run_pipelin", "--config", "demo")
    assert done.returncode == 2
    assert "Did you mean 'run_pipeline'?" in done.stderr and len(done.stderr.splitlines()) == 1


def rewritten(change: Callable[[list[dict[str, object]]], object], file: str = "train.jsonl") -> None:
    """The rows of a file of this project as `change` makes them."""
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    changed = change(rows)
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in (rows if changed is None else changed)))  # type: ignore[attr-defined]


def test_a_misspelt_column_and_no_relevance_at_all(here: Path) -> None:
    rewritten(lambda rows: [{"positive" if k == "positives" else k: v for k, v in row.items()} for row in rows])
    refused(check(), 3, "queries.train", "train.jsonl", "'positive'", "positives: positive")
    rewritten(lambda rows: [{k: v for k, v in row.items() if k != "positive"} for row in rows])
    refused(check(), 3, "queries.train", "train.jsonl", "does not say what is relevant", "qrels")


@pytest.mark.parametrize(
    ("data", "mention"),
    [
        ('{"docid": "1", "text": "a"}'.encode("utf-16"), "UTF-16"),
        (b'[{"docid": "1", "text": "a"}]', "JSON array"),
        (b"\xff\xfe\x00nothing", "UTF-16"),
        ("docid,text\n1,caf\u00e9".encode("latin-1"), "can be read"),
    ],
)
def test_a_corpus_that_is_no_json_lines(here: Path, data: bytes, mention: str) -> None:
    (here / "corpus.jsonl").write_bytes(data)
    refused(check(), 3, "corpus.jsonl", mention)


@pytest.mark.parametrize("key", ["corpus", "queries.dev", "queries.dev.qrels"])
def test_a_file_without_rows(here: Path, key: str) -> None:
    (here / "none.jsonl").write_text("\n")
    given = "{format: jsonl, path: none.jsonl}" if key.endswith("qrels") else "none.jsonl"
    refused(check(f"{key}{'' if key.endswith('qrels') else '.path'}={given}"), 3, f"{key}: ", "none.jsonl holds no row")


def test_train_and_test_the_same_file(here: Path) -> None:
    refused(check("queries.test.path=train.jsonl"), 3, "queries.train and queries.test are the same queries", "split")


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may read and write everything")
def test_what_may_not_be_read_or_written(here: Path) -> None:
    (here / "corpus.jsonl").chmod(0)
    refused(check(), 2, "corpus.jsonl", "permissions")
    (here / "corpus.jsonl").chmod(0o600)
    (here / "shut").mkdir(mode=0o500)
    refused(check("runs_dir=shut/runs"), 2, "runs_dir", "shut cannot be written")


def test_a_file_name_with_blanks_and_umlauts_gives_a_safe_run_name(here: Path) -> None:
    shutil.copy(here / "mine.yaml", here / "Meine Übung 2.1.yaml")
    code, said, error = check(config="Meine Übung 2.1.yaml")
    assert (code, error) == (0, "")
    assert "the run is called Meine-Ubung-2-1" in said
    assert str(here / "runs" / "Meine-Ubung-2-1") in said


def test_stages_that_a_run_does_not_train_are_told(here: Path) -> None:
    code, said, _ = check("align.stages=[dpo]")
    assert code == 0 and "`aqe run` trains models: rsft, rsft_dpo" in said
    _, said, _ = check("align.stages=[dpo]", "models=[dpo]")
    assert "align.stages" not in said


@pytest.mark.parametrize(
    ("text", "language"),
    [("北京是中国的首都。", "zh"), ("東京は日本の首都です", "ja"), ("Москва", "ru or uk"), ("Rome", "")],
)
def test_text_that_the_english_analyzer_does_not_know_is_told(here: Path, text: str, language: str) -> None:
    rewritten(lambda rows: [row | {"title": "", "text": text} for row in rows], "corpus.jsonl")
    code, said, _ = check()
    assert code == 0
    assert (f"Set index.language to {language}." in said) == bool(language)
    assert ("warning" in said) == bool(language)


def test_a_limit_takes_fewer_queries_of_each_source(here: Path) -> None:
    options = [x for assignment in SMALL for x in ("--set", assignment)]
    with patch.dict(os.environ):
        done = CliRunner().invoke(cli.app, ["check", "--config", "mine.yaml", *options, "--limit", "5"])
    assert "train 5, dev 5, test 5 queries at most" in done.stdout


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    code, _, error = check()
    assert code == 4 and "runs_dir: this run takes some" in error and "0.0 GB left" in error


def test_a_run_that_is_resumed_needs_no_room_for_what_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = here / "runs" / "mine" / "samples-0123456789abcdef"
    made.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    with (made / "data").open("wb") as sparse:
        sparse.truncate(100)
    refused(check("runs_dir=runs"), 4, "this run takes some", "of which 0.0 GB are there")
    with (made / "data").open("wb") as sparse:
        sparse.truncate(10**12)
    assert check("runs_dir=runs")[0] == 0


def test_a_job_runs_without_pythonpath() -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("RAY_")}
    import subprocess

    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "run_pipeline.py"), "--config", "nope"],
        cwd="/", env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("ConfigError: --config nope")


def test_one_query_and_several(tmp_path: Path) -> None:
    tiny_model.save(tmp_path / "model")
    expander = Expander.load(str(tmp_path / "model"))
    for wrong in (None, ["a", "b"], 3):
        with pytest.raises(InputError, match="expand_many"):
            expander.expand(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not one text"):
        expander.expand_many("a query")
    with pytest.raises(InputError, match="query 2 of 2 is no text"):
        expander.expand_many(["a", None])  # type: ignore[list-item]


class Died(Exception):
    """As Ray tells of an actor that could not start: the text of what was raised there."""


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_kind_of_error_has_one_line_and_its_code(
    kind: type[AqeError], capsys: pytest.CaptureFixture[str]
) -> None:
    def as_it_is() -> None:
        raise kind("what is wrong")

    def as_a_cause() -> None:
        try:
            as_it_is()
        except AqeError as error:
            raise RuntimeError("a task failed") from error

    def as_text() -> None:
        raise Died(f"The actor died:\nray::Worker.__init__()\n  File x\naqe.errors.{kind.__name__}: what is wrong\n")

    for fail in (as_it_is, as_a_cause, as_text):
        with patch.dict(os.environ), pytest.raises(SystemExit) as ended, quietly():
            fail()
        assert ended.value.code == kind.exit_code
        assert capsys.readouterr().err == f"{kind.__name__}: what is wrong\n"


def test_an_error_of_a_ray_task_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from ray.exceptions import RayTaskError

    # As `ray.get` raises it: of the kind of its cause too.
    text = "Traceback (most recent call last):\n  File x\naqe.errors.DataError: what is wrong"
    error = RayTaskError("write_queries", text, DataError("what is wrong")).as_instanceof_cause()
    assert isinstance(error, DataError)
    with patch.dict(os.environ), pytest.raises(SystemExit) as ended, quietly():
        raise error
    assert ended.value.code == 3
    assert capsys.readouterr().err == "DataError: what is wrong\n"


def test_a_cluster_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at nowhere:6379")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:6379")
    with patch.dict(os.environ), pytest.raises(SystemExit) as ended, quietly():
        connect()
    assert ended.value.code == 4
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("DependencyError: no Ray cluster answers") and "nowhere:6379" in line


def test_debug_shows_where_and_our_own_faults_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.dict(os.environ), pytest.raises(SystemExit), quietly(debug=True):
        raise InputError("what is wrong")
    assert "Traceback" in capsys.readouterr().err
    with patch.dict(os.environ), pytest.raises(ZeroDivisionError), quietly():
        _ = 1 / 0


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.dict(os.environ), pytest.raises(SystemExit) as ended, quietly():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "Interrupted. The same command resumes" in capsys.readouterr().err


def test_a_full_disk_is_one_line_wherever_it_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.dict(os.environ), pytest.raises(SystemExit) as ended, quietly():
        raise OSError(28, "No space left on device")
    assert ended.value.code == 4
    assert "Make room" in capsys.readouterr().err
