"""A user with a corpus and nothing else: the whole run, and what it says of its numbers."""

import json
from pathlib import Path

import pytest

from aqe.artifact import load, read_parquet
from tests.test_pipeline import home, only, run
from tests.tools.small_project import write_project

__all__ = ["home"]

ASKED = (
    r"queries={format: synthetic, from: corpus, number: 80, split: {train: 0.5, dev: 0.2, test: 0.3}, depth: 70, "
    r'prompt: {name: tiny, template: "Passage: {passage}\nQuery:", stop: ["\n"]}}'
)


@pytest.mark.slow
def test_a_corpus_without_judgements(tmp_path: Path, home: Path) -> None:
    write_project(tmp_path)
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").unlink()
    said = run("run_pipeline", tmp_path, home, ASKED, "engine.max_model_len=512")
    made = tmp_path / "runs" / "mine"
    stats = load(only(made, "queries")).stats
    assert f"train: {stats['train']} kept; set aside: " in said and f"test: {stats['test']} queries" in said
    notice = "Synthetic queries: train, dev and test."
    assert said.index(notice) < said.index("bm25 ")
    for name in ("report.html", "report.md"):
        page = (made / "report" / name).read_text()
        assert notice in page and "say little about real ones" in page
        assert "synthetic_sample" in page and "BM25 finds its passage first already" in page
    card = (only(made, "align_rsft_dpo") / "model" / "README.md").read_text()
    assert f"Results ({stats['test']} synthetic test queries)" in card and notice in card
    metrics = json.loads((made / "report" / "metrics.json").read_text())
    assert metrics["num_queries"] == stats["test"]
    # Training queries are those that the plain search finds late; of the others, all are kept.
    searched = {row["qid"]: row for row in read_parquet(only(made, "synthetic_search") / "data").to_pylist()}
    late = {qid for qid, row in searched.items() if 1 < row["gold_rank"] <= 70 and row["score"]}
    kept = {
        split: set(read_parquet(only(made, "queries") / f"{split}.parquet")["qid"].to_pylist())
        for split in ("train", "dev", "test")
    }
    held_out = kept["dev"] | kept["test"]
    assert kept["train"] == late - held_out and held_out - late
    again = run("run_pipeline", tmp_path, home, ASKED, "engine.max_model_len=512")
    assert "made in" not in again
