"""The controls: what ranks best on dev is chosen, and what is made of expansions is theirs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqe.artifact import Artifact, write_parquet
from aqe.compose import compose
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.evaluate.expansions import cut
from aqe.evaluate.stage import (
    best_of_n,
    choose_cut,
    choose_prompt,
    choose_union,
    cut_expansions,
    note,
    seconds_per_query,
    texts,
    union,
)
from aqe.impacts.gold import open_gold_ranker
from aqe.rank.retriever import Retriever
from aqe.rank.stage import rank_expansions, search_expansions
from aqe.records import JUDGED, SAMPLES, table
from aqe.run import Run
from tests.impacts.test_gold import build

CORPUS = {f"d{i:02d}": [f"own{i}", f"w{i % 5}", f"w{i % 7}", "all"] for i in range(30)}
QUERIES = [{"qid": f"q{i}", "text": f"w{i % 5} all", "relevant": [f"d{i:02d}"], "grades": [1]} for i in range(9)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), lambda line: None)


@pytest.fixture(scope="module")
def retriever(run: Run) -> Retriever:
    def fill(out: Path) -> dict[str, int]:
        build(out, CORPUS)
        return {}

    return Retriever(run.make("build_impacts", config={}, inputs={}, build=fill), RankConfig(), IndexConfig())


@pytest.fixture(scope="module")
def judged(run: Run) -> Artifact:
    def fill(out: Path) -> dict[str, int]:
        write_parquet(table(QUERIES, JUDGED), out / "queries.parquet", 4)
        return {}

    return run.make("judge_queries", config={"split": "dev"}, inputs={}, build=fill)


def sampled(run: Run, prompt: str, rows: dict[str, list[str]], size: int = 4) -> Artifact:
    """As the stage that samples leaves it: `size` queries to a file."""

    def fill(out: Path) -> dict[str, Any]:
        qids = list(rows)
        for at in range(0, len(qids), size):
            samples = [
                {
                    "unit_id": "u",
                    "qid": qid,
                    "sample_idx": i,
                    "raw": f" {text}",
                    "expansion": text,
                    "finish_reason": "stop",
                    "token_ids": [1, 2, 3],
                    "stop_at": None,
                    "num_tokens": 3,
                    "logprob": -1.0,
                    "duplicate": False,
                }
                for qid in qids[at : at + size]
                for i, text in enumerate(rows[qid])
            ]
            write_parquet(table(samples, SAMPLES), out / "data" / f"{at:04d}.parquet")
        counts = {"queries_per_unit": size, "units": -(-len(qids) // size), "rows_in": len(qids), "dead": 0}
        return {**counts, "busy_seconds": 18.0}

    config = {"prompt": {"name": prompt}, "num_samples": len(next(iter(rows.values())))}
    return run.make("expand_dev_base", config=config, inputs={}, build=fill)


def mrr(retriever: Retriever, expansions: dict[str, str]) -> float:
    """By asking the engine for one query after the other."""
    ranker = open_gold_ranker(retriever.index.path, retriever.bm25)
    asked = {query["qid"]: query for query in QUERIES}
    golds = [
        ranker.gold_ranks([compose(asked[qid]["text"], text)], asked[qid]["relevant"])[0]  # type: ignore[arg-type]
        for qid, text in expansions.items()
    ]
    return float(np.mean([1 / gold.rank if gold.found else 0 for gold in golds]))


def test_the_best_prompt_and_length_on_dev_are_chosen(
    ray_cluster: None, run: Run, retriever: Retriever, judged: Artifact
) -> None:
    wrong = sampled(run, "wrong", {f"q{i}": [f"own{i + 9} w1"] for i in range(9)})
    right = sampled(run, "right", {f"q{i}": [f"own{i} own{i + 9} own{i + 10} own{i + 11}"] for i in range(9)})
    choice = choose_prompt(run, retriever, judged=judged, greedy={"wrong": wrong, "right": right})
    assert choice.best == "right"
    for name, artifact in (("wrong", wrong), ("right", right)):
        assert choice.tried[name] == pytest.approx(mrr(retriever, texts(artifact)), abs=1e-5)
    lengths = choose_cut(run, retriever, (1, 2, 4), judged=judged, expansions=right)
    assert lengths.best == "1" and lengths.tried["1"] == 1.0
    for words in (1, 2, 4):
        shorter = {qid: cut(text, words) for qid, text in texts(right).items()}
        assert lengths.tried[str(words)] == pytest.approx(mrr(retriever, shorter), abs=1e-5)
    short = cut_expansions(run, 2, False, judged=judged, expansions=right)
    assert texts(short) == {f"q{i}": f"own{i} own{i + 9}" for i in range(9)}
    assert (short.stage, note(short)) == ("expansions_dev_cut", "prompt right, 2 words")
    assert seconds_per_query(short) == seconds_per_query(right) == 2.0


def test_a_prompt_that_finds_nothing_has_no_mrr(ray_cluster: None, run: Run, retriever: Retriever) -> None:
    # Passages d00 and d01 would be the first of those that match nothing.
    queries = [{"qid": f"q{i}", "text": "unknown", "relevant": [f"d{i:02d}"], "grades": [1]} for i in range(2)]

    def fill(out: Path) -> dict[str, int]:
        write_parquet(table(queries, JUDGED), out / "queries.parquet", 4)
        return {}

    judged = run.make("judge_queries", config={"split": "dev", "unmatched": True}, inputs={}, build=fill)
    nothing = sampled(run, "nothing", {"q0": ["nowhere"], "q1": ["nowhere"]})
    something = sampled(run, "something", {"q0": ["w1 all"], "q1": ["nowhere"]})
    choice = choose_prompt(run, retriever, judged=judged, greedy={"nothing": nothing, "something": something})
    assert choice.tried["nothing"] == 0
    assert 0 < choice.tried["something"] < 0.5
    assert choice.best == "something"


def test_the_oracle_takes_the_best_of_the_first_queries_candidates(
    ray_cluster: None, run: Run, retriever: Retriever, judged: Artifact
) -> None:
    candidates = {f"q{i}": [f"own{i + 9}", f"own{i} w1", f"own{i}"] for i in range(6)}
    samples = sampled(run, "draws", candidates, size=2)
    ranks = rank_expansions(run, retriever, judged=judged, samples=samples, stage="rank_dev")
    oracle = best_of_n(run, judged=judged, samples=samples, ranks=ranks)
    best = {qid: max(own, key=lambda text: mrr(retriever, {qid: text})) for qid, own in candidates.items()}
    assert mrr(retriever, texts(oracle)) == mrr(retriever, best) == 1.0
    assert list(texts(oracle)) == list(candidates)
    assert oracle.stats["queries_per_unit"] == 6
    assert note(oracle) == "3 candidates, the best chosen by its true rank"


def test_the_union_searches_the_words_of_the_first_candidates(
    ray_cluster: None, run: Run, retriever: Retriever, judged: Artifact
) -> None:
    drawn = sampled(run, "several", {f"q{i}": ["w1", f"own{i}", "all w1", "own29 own28 w2"] for i in range(9)})
    made = union(run, 3, judged=judged, samples=drawn)
    assert texts(made) == {f"q{i}": f"w1 own{i} all" for i in range(9)}
    assert note(made) == "prompt several, the words of 3 candidates"
    assert seconds_per_query(made) == pytest.approx(seconds_per_query(drawn) * 3 / 4)
    found = search_expansions(run, retriever, judged=judged, expansions=made, stage="search_union").read()
    assert set(found["gold_rank"].to_pylist()) == {1}
    choice = choose_union(run, retriever, (1, 2, 4, 8), judged=judged, samples=drawn)
    for count in (1, 2, 4, 8):
        asked = texts(union(run, count, judged=judged, samples=drawn))
        assert choice.tried[str(count)] == pytest.approx(mrr(retriever, asked), abs=1e-5)
    assert choice.best == "2"
