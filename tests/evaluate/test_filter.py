"""The filter: a reranker that TRL trains on the candidates' own ranks, and what it chooses."""

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import MambaConfig

from aqe.artifact import Artifact, write_parquet
from aqe.base_model import LanguageModel
from aqe.config.rank import PreferConfig
from aqe.errors import ConfigError, InputError
from aqe.evaluate import filter as filters
from aqe.evaluate.filter import Filter, check_filter, choose_by_filter, train_filter
from aqe.evaluate.stage import filtered, note, texts
from aqe.records import JUDGED, PLAIN, RANKS, SAMPLES, table
from aqe.run import Run
from tests.tools.align import HINTS, NOUNS, make_model

QUERIES = 240
GOOD = HINTS[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), lambda line: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel(make_model(tmp_path_factory.mktemp("model") / "start"), "tiny", "tiny", None)


def candidates(qid: str) -> list[str]:
    """Four different hints, the good one somewhere among them."""
    drawn = [*random.Random(qid).sample(HINTS[1:], 3), GOOD]
    random.Random(f"{qid}x").shuffle(drawn)
    return drawn


def artifacts(run: Run, split: str, count: int) -> dict[str, Artifact]:
    """Judged queries, candidates and ranks: the good hint finds the passage at once, the others far down."""
    qids = [f"{split}{i}" for i in range(count)]
    queries = [
        {"qid": qid, "text": f"the {NOUNS[i % 8]}", "relevant": ["d"], "grades": [1]} for i, qid in enumerate(qids)
    ]
    samples, ranks = [], []
    for qid in qids:
        ranks.append({"qid": qid, "sample_idx": PLAIN, "gold_docid": "d", "gold_rank": 50, "score": 1.0, "ndcg": None})
        for i, text in enumerate(candidates(qid)):
            of: dict[str, Any] = {"qid": qid, "sample_idx": i}
            samples.append({**of, "unit_id": "u", "raw": f" {text}", "expansion": text, "finish_reason": "stop",
                            "token_ids": [1], "num_tokens": 1, "logprob": -1.0, "duplicate": False})  # fmt: skip
            ranks.append({**of, "gold_docid": "d", "gold_rank": 1 if text == GOOD else 90, "score": 1.0})

    def fill(name: str, data: Any) -> Any:
        def build(out: Path) -> dict[str, Any]:
            write_parquet(data, out / name, 64)
            counts = {"queries_per_unit": count, "units": 1, "rows_in": count, "dead": 0, "busy_seconds": 1.0}
            return {**counts, "candidates": len(samples), "truncated": 0}

        return build

    config = {"split": split, "num_samples": 4, "prompt": {"name": "drawn"}}
    made = {
        "judged": fill("queries.parquet", table(queries, JUDGED)),
        "samples": fill("data/0.parquet", table(samples, SAMPLES)),
        "ranks": fill("data/0.parquet", table(ranks, RANKS)),
    }
    return {name: run.make(f"{name}_{split}", config=config, inputs={}, build=build) for name, build in made.items()}


@pytest.fixture(scope="module")
def trained(ray_cluster: None, run: Run, model: LanguageModel) -> Filter:
    with pytest.MonkeyPatch.context() as patch:
        # A random model of two layers learns in so few steps at a high rate only.
        patch.setattr(filters, "LEARNING_RATES", (1e-6, 1e-2))
        return train_filter(run, PreferConfig(), 0, **artifacts(run, "train", QUERIES), model=model)


def test_the_filter_learns_what_ranks_well_and_is_chosen_by_it(trained: Filter) -> None:
    tried = trained.choice.tried
    assert trained.choice.best == "learning rate 0.01" and tried[trained.choice.best] == max(tried.values()) > 0.9
    apart = sum(filters._kept_apart(f"train{i}") for i in range(QUERIES))
    stats = trained.artifact.stats
    # The best against one of the three that are worth the same; the others do not differ.
    assert (stats["kept_apart"], stats["pairs"]) == (apart, QUERIES - apart) and 0 < apart < QUERIES / 4
    assert stats["steps"] == -(-stats["pairs"] // filters.BATCH)


def test_it_chooses_of_queries_that_it_never_saw(trained: Filter, run: Run) -> None:
    made = artifacts(run, "test", 30)
    expansions = filtered(run, trained, judged=made["judged"], samples=made["samples"])
    chosen = texts(expansions)
    assert list(chosen) == [f"test{i}" for i in range(30)]
    assert sum(text == GOOD for text in chosen.values()) >= 27
    assert note(expansions).startswith("4 candidates, one chosen by a filter trained on ")
    rows = [
        {"qid": "q", "query": "the river", "expansions": ["", GOOD]},
        {"qid": "p", "query": "x", "expansions": [""]},
    ]
    assert choose_by_filter(run, trained, rows)["p"] == ""


def test_too_little_to_train_on_is_said(ray_cluster: None, run: Run, model: LanguageModel) -> None:
    few = artifacts(run, "few", 1)
    with pytest.raises(InputError, match=r"leave it out of evaluate\.systems"):
        try:
            train_filter(run, PreferConfig(), 0, **few, model=model)
        except Exception as error:
            raise getattr(error, "cause", error) from None


def test_a_model_without_a_head_for_scores_is_refused(tmp_path: Path, model: LanguageModel) -> None:
    check_filter(model.path)
    MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=8).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"filtered.*head for scores.*mamba"):
        check_filter(tmp_path)
