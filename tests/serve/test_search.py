"""Search with and without the expansion: exact lists, exact ranks, and scores that add up to what each term gives."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aqe.config.serve import SearchConfig
from aqe.errors import InputError
from serve.passages import Passages
from serve.search import Searcher
from tests.impacts.test_gold import build
from tests.tools.serve import aligned, client, run, service

CORPUS = {
    "d1": ["gold", "ring", "ring"],
    "d2": ["silver", "ring"],
    "d3": ["gold", "mine", "deep"],
    "d4": ["carmen", "opera"],
    "d5": ["opera", "gold"],
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchConfig:
    monkeypatch.setenv("AQE_CACHE", str(tmp_path / "cache"))
    build(tmp_path / "impacts", CORPUS, shards=2)
    rows = [{"docid": d, "title": d.upper(), "text": " ".join(words)} for d, words in CORPUS.items()]
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[3:]), tmp_path / "corpus" / "b.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:3]), tmp_path / "corpus" / "a.parquet")
    pq.write_table(
        pa.Table.from_pylist([{"qid": "q", "text": "ring"}, {"qid": "r", "text": "?"}]), tmp_path / "q.parquet"
    )
    pq.write_table(pa.Table.from_pylist([{"qid": "q", "docid": "d2", "relevance": 1}]), tmp_path / "qrels.parquet")
    return SearchConfig(
        impacts=tmp_path / "impacts",
        corpus=tmp_path / "corpus",
        queries=tmp_path / "q.parquet",
        qrels=(tmp_path / "qrels.parquet",),
    )


def test_hits_ranks_and_terms(config: SearchConfig) -> None:
    searcher = Searcher(config)
    found = run(searcher.search("gold ring", "operas, carmen", "gold ring ? operas, carmen", 3, ["d4"]))
    plain, expanded = found["plain_hits"], found["expanded_hits"]
    assert [hit["docid"] for hit in plain] == ["d1", "d2", "d5"] and len(expanded) == 3
    assert (plain[0]["title"], plain[0]["text"]) == ("D1", "gold ring ring")
    for hits in (plain, expanded):
        for i, hit in enumerate(hits):
            assert hit["rank"] == i + 1
            assert hit["score"] == pytest.approx(sum(term["score"] for term in hit["terms"]), abs=1e-3)
    carmen = next(hit for hit in expanded if hit["docid"] == "d4")
    assert {(term["term"], tuple(term["words"]), term["source"]) for term in carmen["terms"]} == {
        ("carmen", ("carmen",), "expansion"),
        ("opera", ("operas,",), "expansion"),
    }
    assert next(t for t in plain[0]["terms"] if t["term"] == "ring")["source"] == "query"
    # d4 shares no term with the plain query; d3 does, and its rank goes on below the hits.
    assert carmen["rank_other"] is None and carmen["gold"]
    assert found["gold"] == [{"docid": "d4", "title": "D4", "plain_rank": None, "expanded_rank": carmen["rank"]}]
    (mine,) = run(searcher.search("gold ring", "", "gold ring", 3, ["d3"]))["gold"]
    assert mine["plain_rank"] == mine["expanded_rank"] == 4


def test_passages_are_found_by_docid(config: SearchConfig) -> None:
    assert config.corpus is not None
    passages = Passages(config.corpus)
    assert [passages.get(d)[1] for d in sorted(CORPUS)] == [" ".join(CORPUS[d]) for d in sorted(CORPUS)]
    assert passages.get("d") == passages.get("d25") == passages.get("z") == (None, None)
    with pytest.raises(InputError, match=r"search\.corpus: .* does not exist"):
        Passages(config.corpus / "missing")


def test_search_over_http(config: SearchConfig, tmp_path: Path) -> None:
    served = service(aligned(tmp_path), search=config.model_dump())
    with client(served, searcher=Searcher(config)) as http:
        assert http.get("/v1/examples").json() == {"examples": [{"query": "ring", "gold": ["d2"]}]}
        answer = http.post("/v1/search", json={"query": "ring", "k": 2, "gold": ["d2"]}).json()
        assert [hit["docid"] for hit in answer["plain_hits"]] == ["d1", "d2"]
        assert answer["expanded"]["composed"].startswith("ring ring ?")
        assert answer["gold"][0]["plain_rank"] == 2
        missed = http.post("/v1/search", json={"query": "mine", "gold": ["d2"], "skip": True}).json()["gold"]
        assert missed == [{"docid": "d2", "title": "D2", "plain_rank": None, "expanded_rank": None}]
        assert set(answer["milliseconds"]) == {"expand", "search_plain", "search_expanded", "explain", "total"}
        assert http.get("/v1/models").json()["data"][0]["search"]
        unknown = http.post("/v1/search", json={"query": "ring", "gold": ["d9"]})
        assert unknown.status_code == 422 and "d9" in unknown.json()["error"]["message"]
