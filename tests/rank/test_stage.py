"""Ranking and searching as stages: their workers read judged queries and expansions, whatever the units of both."""

import json
from pathlib import Path
from typing import Any

import pytest

from aqe.artifact import Artifact, write_parquet
from aqe.compose import compose
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.errors import ArtifactError
from aqe.impacts.gold import open_gold_ranker
from aqe.rank.retriever import Retriever
from aqe.rank.stage import rank_expansions, search_expansions
from aqe.rank.workers import gold_ranks, search
from aqe.records import EXPANSIONS, JUDGED, PLAIN, RANKS, SEARCHED, table
from aqe.run import Run
from tests.impacts.test_gold import build

CORPUS = {f"d{i:02d}": [f"w{i % 7}", f"w{i % 5}", f"w{i % 11}", "all"] for i in range(40)}
QUERIES: list[dict[str, Any]] = [
    {"qid": f"q{i}", "text": f"w{i % 7} all", "relevant": sorted([f"d{i:02d}", f"d{i + 9:02d}"]), "grades": [1, 1]}
    for i in range(11)
]


def make(run: Run, stage: str, files: dict[str, Any], **stats: int) -> Artifact:
    def fill(out: Path) -> dict[str, int]:
        for name, data in files.items():
            write_parquet(data, out / f"{name}.parquet", 4)
        return stats

    return run.make(stage, config={"split": "train"}, inputs={}, build=fill)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), lambda line: None)


@pytest.fixture(scope="module")
def index(run: Run) -> Artifact:
    def fill(out: Path) -> dict[str, int]:
        build(out, CORPUS)
        return {}

    return run.make("build_impacts", config={}, inputs={}, build=fill)


@pytest.fixture(scope="module")
def judged(run: Run) -> Artifact:
    return make(run, "judge_queries", {"queries": table(QUERIES, JUDGED)})


def texts(query: int, count: int) -> list[str]:
    return [f"w{(query + i) % 11} w{i}" for i in range(count)]


def expansions(run: Run, stage: str, count: int, size: int, first: int) -> Artifact:
    """`count` expansions of each of the first queries but q3, which was not sampled; `size` queries to a file."""
    rows = {
        q: [{"qid": f"q{q}", "sample_idx": i, "expansion": text} for i, text in enumerate(texts(q, count))]
        for q in range(first)
        if q != 3
    }
    files = {
        f"data/{at:04d}": table([row for q in range(at, min(at + size, first)) for row in rows.get(q, [])], EXPANSIONS)
        for at in range(0, first, size)
    }
    rows_in = len(rows)
    return make(run, stage, files, queries_per_unit=size, units=len(files), rows_in=rows_in, dead=0)


@pytest.mark.parametrize(("own", "theirs", "first"), [(2, 3, 11), (3, 2, 11), (4, 11, 11), (2, 3, 6), (50, 1, 11)])
def test_every_candidate_is_ranked_once_however_units_are_cut(
    ray_cluster: None, run: Run, index: Artifact, judged: Artifact, own: int, theirs: int, first: int
) -> None:
    config = RankConfig(queries_per_unit=own, query_weight=2, distinct_words=True, ndcg_at=5)
    # How units are cut is no part of a fingerprint.
    run = Run(run.root / f"{own}-{theirs}-{first}", run.say)
    samples = expansions(run, f"sample_{theirs}_{first}", 3, theirs, first)
    ranks = rank_expansions(run, Retriever(index, config, IndexConfig()), judged=judged, samples=samples, stage="rank")
    ranker = open_gold_ranker(index.path, IndexConfig())
    expected = []
    for q, query in enumerate(QUERIES[:first]):
        if q == 3:
            continue
        for i, text in enumerate(["", *texts(q, 3)], PLAIN):
            (gold,) = ranker.gold_ranks([compose(query["text"], text, 2, True)], query["relevant"])
            expected.append((query["qid"], i, gold.docid, gold.rank, gold.score))
    rows = ranks.read()
    assert rows.schema.equals(RANKS)
    assert [tuple(row.values())[:5] for row in rows.to_pylist()] == expected
    assert all(0 <= ndcg <= 1 for ndcg in rows["ndcg"].to_pylist())
    assert ranks.stats["ranks"] == len(expected)
    assert ranks.stats["rows_in"] == len(expected) / 4


def test_a_query_that_goes_missing_is_an_error(ray_cluster: None, run: Run, index: Artifact, judged: Artifact) -> None:
    samples = expansions(run, "sample_lost", 2, 3, 11)
    (samples.path / "data" / "0003.parquet").write_bytes((samples.path / "data" / "0000.parquet").read_bytes())
    # As if made so: what is changed later is not read.
    manifest = json.loads((samples.path / "manifest.json").read_text())
    (samples.path / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(ArtifactError, match="rank_lost saw 8 of the 10 queries"):
        rank_expansions(
            run, Retriever(index, RankConfig(), IndexConfig()), judged=judged, samples=samples, stage="rank_lost"
        )


def test_a_search_is_of_the_expanded_or_of_the_plain_query(
    ray_cluster: None, run: Run, index: Artifact, judged: Artifact
) -> None:
    retriever = Retriever(index, RankConfig(), IndexConfig())
    greedy = expansions(run, "expand", 1, 4, 6)
    plain = search_expansions(run, retriever, judged=judged, expansions=None, stage="search_bm25").read()
    expanded = search_expansions(run, retriever, judged=judged, expansions=greedy, stage="search_greedy").read()
    assert plain.schema.equals(SEARCHED) and expanded.schema.equals(SEARCHED)
    assert plain["qid"].to_pylist() == [query["qid"] for query in QUERIES]
    assert expanded["qid"].to_pylist() == ["q0", "q1", "q2", "q4", "q5"]
    ranker = open_gold_ranker(index.path, IndexConfig())
    for row in (*plain.to_pylist(), *expanded.to_pylist()):
        assert [*zip(row["docids"], row["scores"], strict=True)] == ranker.search(row["composed"], 100)
        query = QUERIES[int(row["qid"][1:])]
        assert row["composed"] == compose(query["text"], row["expansion"])
        assert (row["gold_docid"], row["gold_rank"], row["score"]) == ranker.gold_ranks(
            [row["composed"]], query["relevant"]
        )[0]


@pytest.mark.parametrize("excluded", [["d00"], ["d09"], ["d00", "d07", "d14"], ["d39"]])
def test_excluded_passages_are_no_part_of_the_ranking(index: Artifact, excluded: list[str]) -> None:
    ranker = open_gold_ranker(index.path, IndexConfig())
    for text in ("w0 all", "w3 w6", "w10", "nothing", ""):
        for relevant in (["d21"], ["d01", "d35"]):
            row = {"relevant": relevant, "excluded": excluded}
            (gold,) = gold_ranks(ranker, [text], row)
            left = [hit for hit in ranker.search(text, len(CORPUS)) if hit.docid not in excluded]
            at = next((i for i, hit in enumerate(left, 1) if hit.docid in relevant), len(CORPUS) + 1 - len(excluded))
            assert gold.rank == at, (text, relevant)
            assert search(ranker, text, 5, row) == left[:5]


def test_what_matches_nothing_is_not_retrieved(ray_cluster: None, tmp_path: Path) -> None:
    run = Run(tmp_path, lambda line: None)
    corpus = {"00012": ["calm", "harbour"], "12": ["apples", "pears"], "7": ["hot", "iron"]}
    asked = [("q1", "qqqq zzzz", "00012"), ("q2", "图书馆在哪里", "12"), ("q3", "hot iron", "7")]
    queries = table([{"qid": q, "text": t, "relevant": [d], "grades": [1]} for q, t, d in asked], JUDGED)

    def fill(out: Path) -> dict[str, int]:
        build(out, corpus, shards=2)
        return {}

    retriever = Retriever(run.make("build_impacts", config={}, inputs={}, build=fill), RankConfig(), IndexConfig())
    judged = make(run, "judge_queries", {"queries": queries})
    searched = search_expansions(run, retriever, judged=judged, expansions=None, stage="search_bm25").read()
    assert searched["gold_docid"].to_pylist() == ["00012", "12", "7"]
    assert searched["gold_rank"].to_pylist() == [4, 4, 1]
    assert [score > 0 for score in searched["score"].to_pylist()] == [False, False, True]
    assert searched["docids"].to_pylist() == [[], [], ["7"]]
    samples = make(
        run,
        "sample_unmatched",
        {"data/0": table([{"qid": q, "sample_idx": 0, "expansion": "iron"} for q, _, _ in asked], EXPANSIONS)},
        queries_per_unit=3,
        units=1,
        rows_in=3,
        dead=0,
    )
    ranks = rank_expansions(run, retriever, judged=judged, samples=samples, stage="rank").read()
    assert ranks["gold_rank"].to_pylist() == [4, 4, 4, 4, 1, 1]
