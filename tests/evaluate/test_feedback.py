"""RM3 as a control: real Anserini on a real index."""

from pathlib import Path
from typing import Any

import pytest

from aqe.artifact import Artifact, write_parquet
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.errors import InputError
from aqe.evaluate.feedback import LADDERS, search_rm3, tune_rm3
from aqe.index.stage import impact_index, lucene_index, vector_index
from aqe.rank.feedback import rank_in
from aqe.rank.retriever import Retriever
from aqe.rank.stage import search_expansions
from aqe.ranker import Hit
from aqe.records import CORPUS, JUDGED, table
from aqe.run import Run

#: Passages of a topic share a word that the query has not; the relevant one has that word alone.
TOPICS = 12
PASSAGES = [
    row
    for i in range(TOPICS)
    for row in (
        *({"docid": f"near{i}-{n}", "title": "", "text": f"ask{i} ask{i} link{i} link{i} pad{n}"} for n in range(6)),
        {"docid": f"gold{i}", "title": "", "text": f"link{i} link{i} rest{i}"},
    )
]
QUERIES = [{"qid": f"q{i}", "text": f"ask{i}", "relevant": [f"gold{i}"], "grades": [1]} for i in range(TOPICS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), lambda line: None)


def given(run: Run, stage: str, name: str, data: Any) -> Artifact:
    def fill(out: Path) -> dict[str, int]:
        write_parquet(data, out / name, 4)
        return {"passages": len(PASSAGES), "dead": 0}

    return run.make(stage, config={"split": "dev"}, inputs={}, build=fill)


def test_rm3_finds_what_the_best_passages_lead_to(ray_cluster: None, run: Run) -> None:
    corpus = given(run, "corpus", "data/00000.parquet", table(PASSAGES, CORPUS))
    judged = given(run, "judge_queries", "queries.parquet", table(QUERIES, JUDGED))
    config = IndexConfig(k1=0.6, b=0.3, threads=1)
    index = vector_index(run, config, corpus=corpus)
    impacts = impact_index(run, config, index=lucene_index(run, config, corpus=corpus))
    retriever = Retriever(impacts, RankConfig(workers=1), config)
    plain = search_expansions(run, retriever, judged=judged, expansions=None, stage="search_bm25").read()
    assert plain["score"].to_pylist() == [0] * TOPICS
    point, choice = tune_rm3(run, retriever, index=index, judged=judged)
    assert len(point) == len(LADDERS) and choice.tried[choice.best] == max(choice.tried.values()) > 0.1
    found = search_rm3(run, retriever, point, index=index, judged=judged).read()
    assert found.schema.names == plain.schema.names and found["qid"].to_pylist() == [q["qid"] for q in QUERIES]
    for row in found.to_pylist():
        place = row["docids"].index(row["gold_docid"]) + 1
        assert row["gold_rank"] == place == 7 and row["scores"][place - 1] == row["score"] > 0
        assert row["scores"] == sorted(row["scores"], reverse=True)
    # The query's own words alone: the order of plain BM25, at these k1 and b.
    alone = search_rm3(run, retriever, (10, 10, 1.0), index=index, judged=judged).read()
    assert alone["score"].to_pylist() == [0] * TOPICS
    assert [set(docids) for docids in alone["docids"].to_pylist()] == [set(d) for d in plain["docids"].to_pylist()]


def test_an_index_without_the_terms_of_its_passages_is_refused(ray_cluster: None, run: Run) -> None:
    corpus = given(run, "corpus", "data/00000.parquet", table(PASSAGES, CORPUS))
    bare = lucene_index(run, IndexConfig(threads=1), corpus=corpus)
    config = IndexConfig(path=bare.path / "lucene")
    with pytest.raises(InputError, match=r"leave bm25_rm3 out of evaluate\.systems"):
        try:
            vector_index(run, config, corpus=corpus)
        except Exception as error:
            raise getattr(error, "cause", error) from None
    assert lucene_index(run, config, corpus=corpus).path != bare.path


def test_the_rank_in_a_cut_list() -> None:
    hits = [Hit("b", 3.0), Hit("a", 2.0), Hit("c", 1.0)]
    assert rank_in(hits, ["c", "a"], 9) == ("a", 2, 2.0)
    assert rank_in(hits, ["z", "y"], 9) == ("y", 10, 0.0)
