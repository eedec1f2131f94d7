"""Every system of a results table, as a user asks for them: all controls, two seeds, two rounds of DPO."""

import json
from pathlib import Path

import ir_measures
import pytest

from aqe.artifact import load, read_parquet
from aqe.evaluate.compare import CONTROLS, ORDER
from aqe.mend import members
from tests.test_pipeline import home, only, run
from tests.tools.small_project import write_project

__all__ = ["home"]

ALL = [
    f"evaluate.systems=[{', '.join([*CONTROLS, 'best_of_n'])}]",
    "evaluate.seeds=2",
    "evaluate.tune_queries=6",
    "evaluate.oracle_queries=4",
    "align.dpo.rounds=2",
    "align.dpo.on_policy=true",
    "align.dpo.loss_type=[sigmoid, sft]",
    "models=[rsft, rsft_dpo]",
]


@pytest.mark.slow
def test_all_systems_with_two_seeds_and_two_rounds(tmp_path: Path, home: Path) -> None:
    write_project(tmp_path, train=40)
    said = run("run_pipeline", tmp_path, home, *ALL)
    made = tmp_path / "runs" / "mine"
    metrics = json.loads((made / "report" / "metrics.json").read_text())
    assert list(metrics["systems"]) == [name for name in ORDER if name != "dpo"]
    systems = metrics["systems"]
    for name in ("rsft_random", "rsft", "rsft_dpo"):
        assert systems[name]["num_seeds"] == 2 and len(systems[name]["of_seeds"]) == 2
        assert (made / "report" / "runs" / f"{name}.seed1.trec").exists()
    for name in ("union", "filtered", "best_of_n"):
        assert systems[name]["num_queries"] == 4 and "rsft_dpo" in systems[name]["beside"]
    chosen = metrics["chosen_on_dev"]
    assert set(chosen) == {"bm25_tuned", "bm25_rm3", "zero_shot_best", "zero_shot_cut", "union", "filtered"}
    assert chosen["bm25_tuned"]["dev_queries"] == 6 and len(chosen["bm25_tuned"]["dev_mrr"]) >= 9
    # Two seeds of each model, the second of other candidates; two rounds, each from the model before.
    for stage in ("align_rsft", "align_rsft_random", "align_rsft_dpo", "align_rsft_dpo_dpo"):
        assert len(list(made.glob(f"{stage}-*"))) == 2, stage
    assert len(list(made.glob("sample_train-*"))) == 2
    assert len(list(made.glob("sample_train_rsft-*"))) == len(list(made.glob("sample_train_rsft_dpo-*"))) == 2
    for path in made.glob("align_rsft_dpo_dpo-*"):
        inputs = load(path).manifest["inputs"]
        before = {load(p).fingerprint for p in made.glob("align_rsft_dpo-*")}
        assert inputs["model"] in before
    # What is searched with is what was chosen.
    tuned = chosen["bm25_tuned"]["chosen"]
    searched = load(only(made, "search_zero_shot")).manifest["config"]
    assert tuned == f"k1 {searched['k1']:g}, b {searched['b']:g}"
    ranked = load(next(iter(made.glob("rank_train-*")))).manifest["config"]
    assert (ranked["k1"], ranked["b"]) == (searched["k1"], searched["b"])
    plain = load(only(made, "search_bm25")).manifest["config"]
    assert (plain["k1"], plain["b"]) == (0.9, 0.4)
    # The mean of the two seeds' run files is the row.
    qrels = list(ir_measures.read_trec_qrels(str(made / "report" / "runs" / "qrels.txt")))
    of_runs = []
    for name in ("rsft_dpo", "rsft_dpo.seed1"):
        hits = list(ir_measures.read_trec_run(str(made / "report" / "runs" / f"{name}.trec")))
        of_runs.append(ir_measures.calc_aggregate([ir_measures.RR @ 100], qrels, hits)[ir_measures.RR @ 100])
    assert systems["rsft_dpo"]["rr_100"]["value"] == pytest.approx(sum(of_runs) / 2)
    random = read_parquet(next(iter(made.glob("build_preferences-*"))) / "rsft_random.parquet")
    targets = read_parquet(next(iter(made.glob("build_preferences-*"))) / "rsft.parquet")
    assert random["qid"].to_pylist() == targets["qid"].to_pylist()
    assert "mean of 2 training seeds" in (made / "report" / "report.md").read_text()
    # Each stage has a name of its own, whatever its directory is called.
    titles = [load(path).manifest["title"] for path in members(made)]
    assert len(titles) == len(set(titles)) > 50, sorted(titles)
    # Again: nothing is made anew.
    again = run("run_pipeline", tmp_path, home, *ALL)
    assert "made in" in said and "made in" not in again
