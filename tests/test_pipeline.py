"""The whole loop as a user runs it, on a tiny model and a corpus of their own: killed, resumed, repeated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow as pa
import pytest

from aqe import Expander, chain
from aqe.artifact import file_digest, look, read_parquet
from aqe.clean import plan
from aqe.index.shard import Arrays, open_shards
from aqe.mend import members
from aqe.report.verdict import verdict
from tests.tools.small_project import ROOT, SMALL, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with mine.yaml from the README, a corpus, queries and a model."""
    here = tmp_path_factory.mktemp("project")
    write_project(here)
    return here


def environment(home: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    return env | {
        "PYTHONPATH": str(ROOT / "platform"), "RAY_TMPDIR": str(home), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1",
        "RAY_raylet_start_wait_time_s": "180",
    }  # fmt: skip


@pytest.fixture
def home() -> Iterator[Path]:
    """Ray's directory; a socket's path may have 107 characters, so pytest's own is too long."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def start(job: str, project: Path, home: Path, *more: str, runs: str = "runs") -> subprocess.Popen[str]:
    options = [x for assignment in (*SMALL, f"runs_dir={runs}", *more) for x in ("--set", assignment)]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--config", "mine.yaml", *options],
        cwd=project, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(job: str, project: Path, home: Path, *more: str, runs: str = "runs") -> str:
    process = start(job, project, home, *more, runs=runs)
    out, _ = process.communicate(timeout=800)
    assert process.returncode == 0, out[-4000:]
    return out


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """SIGKILL the driver at the moment that `reached` becomes true."""
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate()


def only(root: Path, stage: str) -> Path:
    (path,) = root.glob(f"{stage}-*")
    return path


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> tuple[Path, str]:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as directory:
        out = run("run_pipeline", project, Path(directory))
    return project / "runs" / "mine", out


def test_the_loop_ends_in_a_report(undisturbed: tuple[Path, str]) -> None:
    root, out = undisturbed
    metrics = json.loads((root / "report" / "metrics.json").read_text())
    for name in ("bm25", "zero_shot", "zero_shot_best", "zero_shot_cut", "rsft", "rsft_dpo", "best_of_n"):
        for measure in ("top_1", "top_5", "top_20", "top_100", "mrr", "ndcg_10"):
            found = metrics["systems"][name][measure]
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert set(metrics["differences"]["rsft_vs_bm25"]["mrr"]) >= {"value", "low", "high"}
    assert (root / "report" / "report.html").stat().st_size > 20_000
    assert re.search(r"^bm25 +[\d.]+ \[", out, re.MULTILINE)
    # Each stage is told once, by a name that no other has; none was there before.
    told = re.findall(r"^(.+): made in [\d:]+, ", out, re.MULTILINE)
    assert sorted(told) == sorted(look(path).manifest["title"] for path in members(root)) and len(told) == len(
        set(told)
    )
    for stage in ("rank train's candidates", "train RSFT", "train DPO after RSFT"):
        assert re.search(rf"^{stage}: made in [\d:]+, [\d.e-]+ CPU hours", out, re.MULTILINE), stage
    assert "done before" not in out and out.count(": loading the model\n") >= 2
    assert str(root / "report" / "report.html") in out
    said = verdict(metrics)
    assert said.text in " ".join(out.split()) and "test queries" in said.text
    assert set(metrics["made"]["rsft_dpo"]["training_steps"]) == {"RSFT", "DPO"}
    card = (only(root, "align_rsft_dpo") / "model" / "README.md").read_text()
    for part in (
        "build_index-",
        "| MRR |",
        "| BM25, plain query |",
        "dpo.beta",
        "| temperature | 1 |",
        "| query_weight | 2 |",
        "Question: (the query)?",
    ):
        assert part in card, part
    # It notes all that it was made with, so nothing of it can go.
    noted = chain.read(root, (root / "report").resolve().name)
    assert noted is not None and noted.artifacts == {path.name for path in members(root)}
    assert not plan(root).go
    curves = read_parquet(only(root, "align_rsft_dpo") / "curves.parquet")
    assert all(kl > -1e-6 for kl in curves["kl_per_token"].to_pylist())


def test_the_expander_writes_what_evaluation_searched(undisturbed: tuple[Path, str]) -> None:
    root, _ = undisturbed
    rows = read_parquet(root / "report" / "per_query.parquet").to_pylist()
    rows = [row for row in rows if row["system"] == "rsft_dpo"]
    expander = Expander.load(only(root, "align_rsft_dpo"))
    made = expander.expand_many([row["query"] for row in rows])
    assert [(e.text, e.composed) for e in made] == [(row["expansion"], row["composed"]) for row in rows]
    assert any(e.text for e in made)


def test_from_a_model_one_can_walk_back_to_prompt_index_and_data(undisturbed: tuple[Path, str]) -> None:
    root, _ = undisturbed
    seen: set[str] = set()
    todo = [only(root, "align_rsft_dpo").name]
    while todo:
        name = todo.pop()
        seen.add(name.rsplit("-", 1)[0])
        todo += json.loads((root / name / "manifest.json").read_text())["parents"]
    assert seen >= {
        "align_rsft",
        "build_preferences",
        "sample_train",
        "rank_train",
        "build_impacts",
        "build_index",
        "corpus",
        "queries",
    }


def test_runs_read_back_to_the_same_numbers(undisturbed: tuple[Path, str]) -> None:
    root, _ = undisturbed
    metrics = json.loads((root / "report" / "metrics.json").read_text())
    qrels = list(ir_measures.read_trec_qrels(str(root / "report" / "runs" / "qrels.txt")))
    for name in ("bm25", "zero_shot", "zero_shot_cut", "rsft", "rsft_dpo"):
        hits = list(ir_measures.read_trec_run(str(root / "report" / "runs" / f"{name}.trec")))
        measures = {f"Success@{k}": f"top_{k}" for k in (1, 5, 20, 100)} | {"nDCG@10": "ndcg_10", "RR@100": "rr_100"}
        found = ir_measures.calc_aggregate([ir_measures.parse_measure(m) for m in measures], qrels, hits)
        for measure, value in found.items():
            assert value == pytest.approx(metrics["systems"][name][measures[str(measure)]]["value"], abs=1e-9)


def test_lucene_itself_gives_the_same_ranks(undisturbed: tuple[Path, str], project: Path, home: Path) -> None:
    root, _ = undisturbed
    shutil.copytree(
        root, project / "lucene" / "mine", ignore=shutil.ignore_patterns("rank_train-*", "align_*", "report-*")
    )
    run("rank_expansions", project, home, "rank.engine=lucene", runs="lucene")
    one = read_parquet(only(root, "rank_train") / "data").to_pylist()
    other = read_parquet(only(project / "lucene" / "mine", "rank_train") / "data").to_pylist()
    assert len(one) == 24 * 5
    assert one == other


def test_an_index_that_is_there_already(undisturbed: tuple[Path, str], project: Path, home: Path) -> None:
    root, _ = undisturbed
    given = only(root, "build_index") / "lucene"
    out = run("build_impacts", project, home, f"index.path={given}", runs="given")
    assert "80 passages" in out
    (one,), (other,) = (open_shards(only(r, "build_impacts")) for r in (root, project / "given" / "mine"))
    assert all(np.array_equal(getattr(one.arrays, f.name), getattr(other.arrays, f.name)) for f in fields(Arrays))


@pytest.mark.parametrize(
    ("other", "mention"),
    [
        (lambda lines: [line.replace('"d0"', '"other"') for line in lines], "it lacks 'other'"),
        (lambda lines: lines[:-1], "holds 80 passages, the corpus 79"),
    ],
)
def test_an_index_of_another_corpus_is_refused(
    undisturbed: tuple[Path, str], project: Path, home: Path, other: Callable[[list[str]], list[str]], mention: str
) -> None:
    given = only(undisturbed[0], "build_index") / "lucene"
    (project / "other.jsonl").write_text(
        "".join(other((project / "corpus.jsonl").read_text().splitlines(keepends=True)))
    )
    process = start("build_index", project, home, f"index.path={given}", "corpus.path=other.jsonl", runs="other")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 3, out[-2_000:]
    assert mention in out and "made from another corpus" in out and "Traceback" not in out


def test_a_finished_run_does_nothing(undisturbed: tuple[Path, str], project: Path, home: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed[0].rglob("manifest.json")}
    out = run("run_pipeline", project, home)
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed[0].rglob("manifest.json")}
    assert "write the report: done before" in out
    assert "queries/s" not in out


def test_another_beta_trains_dpo_again_and_nothing_else(
    undisturbed: tuple[Path, str], project: Path, home: Path
) -> None:
    root, _ = undisturbed
    out = run("align_model", project, home, "align.dpo.beta=0.3")
    assert "choose what to train on: done before" in out
    assert "train RSFT: done before" in out
    assert "queries/s" not in out
    assert re.findall(r"^(.+): made in", out, re.MULTILINE) == ["train DPO after RSFT"]
    betas = {json.loads((p / "manifest.json").read_text())["config"]["beta"] for p in root.glob("align_rsft_dpo-*")}
    assert betas == {0.1, 0.3}
    # The other tests look for the one that is there; this one is of no more use.
    for path in root.glob("align_rsft_dpo-*"):
        if json.loads((path / "manifest.json").read_text())["config"]["beta"] == 0.3:
            shutil.rmtree(path)


@pytest.mark.slow
def test_a_killed_driver_changes_no_row(undisturbed: tuple[Path, str], project: Path, home: Path) -> None:
    whole, _ = undisturbed
    root = project / "again" / "mine"

    def units_of(stage: str) -> int:
        return len([p for path in root.glob(f"{stage}-*") for p in (path / "data").glob("*.parquet")])

    # In the middle of sampling; then between two stages.
    kill_when(start("run_pipeline", project, home, runs="again"), lambda: units_of("sample_train") >= 3)
    assert not list(root.glob("sample_train-*/manifest.json"))
    kept = units_of("sample_train")
    kill_when(
        start("run_pipeline", project, home, runs="again"),
        lambda: bool(list(root.glob("sample_train-*/manifest.json"))),
    )
    assert not list(root.glob("build_preferences-*/manifest.json"))
    # And once more, in the middle of what is put together at its end.
    kill_when(start("run_pipeline", project, home, runs="again"), lambda: units_of("build_preferences") >= 1)
    assert not list(root.glob("build_preferences-*/manifest.json"))
    out = run("run_pipeline", project, home, runs="again")
    assert 3 <= kept < 12
    assert "draw 4 candidates for train from the base model, prompt passage: done before" in out
    for stage, names in {
        "sample_train": ["data"],
        "rank_train": ["data"],
        "build_preferences": ["rsft", "dpo"],
    }.items():
        assert only(root, stage).name == only(whole, stage).name
        for name in names:
            one, other = (read_parquet(_data(only(r, stage), name)) for r in (whole, root))
            assert one.replace_schema_metadata().equals(other.replace_schema_metadata()), (stage, name)
            assert one.num_rows > 0
    samples = read_parquet(only(root, "sample_train") / "data")
    assert (
        len({*zip(samples["qid"].to_pylist(), samples["sample_idx"].to_pylist(), strict=True)})
        == samples.num_rows
        == 24 * 4
    )
    for stage in ("align_rsft", "align_rsft_dpo"):
        one, other = (_without_seconds(read_parquet(only(r, stage) / "curves.parquet")) for r in (whole, root))
        assert one.equals(other)
        digests = {file_digest(only(r, stage) / "model" / "model.safetensors") for r in (whole, root)}
        assert len(digests) == 1, stage
    one, other = (_without_times(read_parquet(r / "report" / "per_query.parquet")) for r in (whole, root))
    assert one.equals(other)


def _data(artifact: Path, name: str) -> Path:
    return artifact / name if (artifact / name).is_dir() else artifact / f"{name}.parquet"


def _without_times(table: pa.Table) -> pa.Table:
    return table.drop_columns(["search_ms"])


def _without_seconds(curves: pa.Table) -> pa.Table:
    return curves.select(["step", "loss", "learning_rate"])


@pytest.mark.parametrize(
    ("assignment", "mention"),
    [
        ("corpus.path=nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("align.rsft.trl={no_such_field: 1}", "no_such_field"),
        ("model.source=./no_tokenizer", "has no tokenizer"),
        ("prompt=chat_passage", "has no chat template"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(project: Path, home: Path, assignment: str, mention: str) -> None:
    shutil.copytree(
        project / "model",
        project / "no_tokenizer",
        ignore=shutil.ignore_patterns("token*", "*.jinja"),
        dirs_exist_ok=True,
    )
    process = start("run_pipeline", project, home, assignment, runs="bad")
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 2, out
    assert mention in out
    assert "Traceback" not in out
    assert not (project / "bad").exists()


def test_a_bad_row_is_a_dead_letter(project: Path, home: Path) -> None:
    good = (project / "train.jsonl").read_text()
    (project / "broken.jsonl").write_text(
        good + "{not json\n" + json.dumps({"qid": "x", "text": "", "positives": ["d1"]}) + "\n"
    )
    process = start("judge_queries", project, home, "queries.train.path=broken.jsonl", runs="dead")
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 3
    assert "2 of 42 rows could not be processed, more than max_dead_share" in out
    out = run("judge_queries", project, home, "queries.train.path=broken.jsonl", "max_dead_share=0.1", runs="dead")
    (path,) = (project / "dead" / "mine").glob("queries-*")
    letters = read_parquet(path / "dead_letters.parquet").to_pylist()
    assert len(letters) == 2
    assert any("{not json" in letter["row"] for letter in letters)
    assert any('"qid": "x"' in letter["row"] for letter in letters)
    assert all(letter["reason"] and letter["stage"] for letter in letters)
    assert "24 of 24 queries have a relevant passage" in out
