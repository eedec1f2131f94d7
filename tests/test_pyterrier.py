"""ExpandQuery in PyTerrier pipelines: a service of canned answers, and a real model."""

import importlib
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("pyterrier", reason='PyTerrier is an extra: pip install "pyterrier>=1.1"')

import pyterrier as pt

from aqe.errors import ConfigError, DependencyError, InputError
from aqe.pyterrier import ExpandQuery
from tests.serve.test_client import Canned
from tests.tools.waiting import http_server

PASSAGES = {"d1": "carmen an opera by georges bizet", "d2": "gold is a yellow metal", "d3": "who wrote what"}


def overlap(inp: pd.DataFrame) -> pd.DataFrame:
    """A retriever without Java: counts the words of the query in each passage."""
    rows = [
        {**query, "docno": docno, "score": float(score)}
        for query in inp.to_dict("records")
        for docno, text in PASSAGES.items()
        if (score := sum(word in text.split() for word in query["query"].lower().split()))
    ]
    return pt.model.add_ranks(pd.DataFrame(rows, columns=[*inp.columns, "docno", "score"]))


RETRIEVER = pt.apply.generic(overlap)


@pytest.fixture
def canned() -> Canned:
    return Canned({"opera ?": "carmen georges bizet", "au": "gold", "gold": "a yellow metal", "who?": "opera bizet"})


@pytest.fixture
def url(canned: Canned) -> Iterator[str]:
    with http_server(canned.app) as address:
        yield address


def queries(*texts: object) -> pd.DataFrame:
    return pd.DataFrame({"qid": [f"q{i}" for i in range(len(texts))], "query": texts})


def test_a_pipeline_finds_what_the_plain_query_misses(url: str) -> None:
    pipeline = ExpandQuery(url) >> RETRIEVER
    assert RETRIEVER.search("au").empty
    found = pipeline.search("au")
    assert found[["docno", "query", "query_0", "expansion"]].values.tolist() == [["d2", "au ? gold", "au", "gold"]]
    topics = queries("au", "who?", "carmen")
    qrels = pd.DataFrame({"qid": ["q0", "q1", "q2"], "docno": ["d2", "d1", "d1"], "label": [1, 1, 1]})
    table = pt.Experiment([RETRIEVER, pipeline], topics, qrels, ["recip_rank"], names=["plain", "aqe"])
    # "who?" is found through two words of its expansion in d1; its own word is in d3.
    assert table.set_index("name")["recip_rank"].to_dict() == {"plain": pytest.approx(1 / 3), "aqe": 1.0}
    assert not pt.java.started()


def test_rows_columns_and_index_stay_and_equal_queries_are_expanded_once(canned: Canned, url: str) -> None:
    topics = queries("gold", "au", "gold", "unknown").assign(source=[1, 2, 3, 4])
    topics.index = pd.Index([7, 7, 3, 1])
    before = topics.copy()
    out = ExpandQuery(url).transform(topics)
    pd.testing.assert_frame_equal(topics, before)
    assert list(out.index) == [7, 7, 3, 1]
    assert list(out["qid"]) == ["q0", "q1", "q2", "q3"] and list(out["source"]) == [1, 2, 3, 4]
    assert list(out["query"]) == ["gold ? a yellow metal", "au ? gold", "gold ? a yellow metal", "unknown"]
    assert list(out["query_0"]) == list(before["query"])
    assert list(out["expansion"]) == ["a yellow metal", "gold", "a yellow metal", ""]
    assert canned.asked == [{"queries": ["gold", "au", "unknown"]}]


def test_earlier_queries_are_pushed_and_reset_undoes_it(url: str) -> None:
    topics = queries("au").assign(query_0=["Au!"])
    out = ExpandQuery(url).transform(topics)
    assert out[["query", "query_0", "query_1"]].values.tolist() == [["au ? gold", "au", "Au!"]]
    restored = (ExpandQuery(url) >> pt.rewrite.reset()).transform(topics)
    pd.testing.assert_frame_equal(restored[["qid", "query", "query_0"]], topics)


def test_results_keep_their_documents(url: str) -> None:
    results = pd.DataFrame({"qid": ["1", "1"], "query": ["au", "au"], "docno": ["d1", "d2"], "score": [2.0, 1.0]})
    out = ExpandQuery(url).transform(results)
    assert list(out["docno"]) == ["d1", "d2"] and list(out["score"]) == [2.0, 1.0]
    assert list(out["query"]) == ["au ? gold"] * 2


def test_no_queries(canned: Canned, url: str) -> None:
    expand = ExpandQuery(url)
    for topics in (queries(), pd.DataFrame({"qid": [], "query": [], "extra": []}, dtype=str)):
        out = expand.transform(topics)
        assert len(out) == 0 and {*topics.columns, "query_0", "expansion"} == set(out.columns)
    assert canned.asked == []
    assert pt.inspect.transformer_inputs(expand) == [["qid", "query"]]
    assert pt.inspect.transformer_outputs(expand, ["qid", "query"]) == ["qid", "query_0", "query", "expansion"]


@pytest.mark.parametrize("empty", [None, float("nan"), "", " \n"])
def test_an_empty_query_is_named(empty: object, url: str) -> None:
    with pytest.raises(InputError, match="qid q1 is empty"):
        ExpandQuery(url)(queries("gold", empty))


def test_missing_columns_are_named(url: str) -> None:
    with pytest.raises(pt.validate.InputValidationError, match="query"):
        ExpandQuery(url)(pd.DataFrame({"qid": ["1"], "text": ["gold"]}))


def test_batches_and_busy_times(canned: Canned, url: str) -> None:
    canned.refusals = [(503, {"Retry-After": "1"}), (429, {})]
    started = time.monotonic()
    out = ExpandQuery(url + "/", batch_size=2).transform(queries("gold", "au", "a", "b", "c"))
    assert time.monotonic() - started > 1
    assert list(out["expansion"]) == ["a yellow metal", "gold", "", "", ""]
    asked = [body["queries"] for body in canned.asked]
    assert asked == [["gold", "au"]] * 3 + [["a", "b"], ["c"]]


def test_what_the_service_says_is_passed_on(canned: Canned, url: str) -> None:
    canned.refusals = [(503, {})] * 2
    with pytest.raises(DependencyError, match=r"says 503: The service is busy\. It was asked several times"):
        ExpandQuery(url, retries=1)(queries("gold"))
    canned.refusals = [(504, {})]
    with pytest.raises(InputError, match=r"504: .* smaller batch_size; it was 1"):
        ExpandQuery(url)(queries("gold"))
    with pytest.raises(InputError, match=r"422: queries\.1: too long\. .* the queries from 'gold' to 'xxx"):
        ExpandQuery(url)(queries("gold", "x" * 25_000))
    with pytest.raises(InputError, match=r"cannot expand the query 'xxx.*': too long\."):
        ExpandQuery(url)(queries("gold", "x" * 5_000))
    with pytest.raises(ConfigError, match=r"404: Not Found\. Give the address"):
        ExpandQuery(f"{url}/v1/expand")(queries("gold"))
    canned.app.post("/other/v1/expand")(lambda: {"results": [{"text": "gold"}]})
    with pytest.raises(ConfigError, match="not answer as aqe's service"):
        ExpandQuery(f"{url}/other")(queries("gold"))
    with pytest.raises(DependencyError, match=r"no answer from http://127\.0\.0\.1:9/v1/expand"):
        ExpandQuery("http://127.0.0.1:9")(queries("gold"))


def test_the_key_is_sent_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AQE_API_KEY", raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    canned = Canned({"au": "gold"}, key="a key of the service")
    with http_server(canned.app) as url:
        with pytest.raises(ConfigError, match=r"401: Send a valid API key\. Give a valid api_key, or set AQE_API_KEY"):
            ExpandQuery(url)(queries("au"))
        expand = ExpandQuery(url, api_key="a key of the service")
        assert repr(expand) == f"ExpandQuery('{url}')"
        for one in (expand, pickle.loads(pickle.dumps(expand))):
            assert one.search("au")["expansion"].tolist() == ["gold"]
        monkeypatch.setenv("AQE_API_KEY", "a key of the service")
        assert ExpandQuery(url).search("au")["expansion"].tolist() == ["gold"]
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:8000 is no address"):
        ExpandQuery("127.0.0.1:8000", api_key="a key of the service")


def test_a_model(tmp_path: Path) -> None:
    from aqe.expand.expander import Expander
    from tests.tools import tiny_model

    path = tiny_model.save(tmp_path / "model")
    expander = Expander.load(path, max_tokens=12)
    expected = [expander.expand(query) for query in ("who wrote carmen?", "gold")]
    topics = queries("who wrote carmen?", "gold", "gold")
    out = ExpandQuery(expander).transform(topics)
    assert list(out["query"]) == [expected[i].composed for i in (0, 1, 1)]
    assert list(out["expansion"]) == [expected[i].text for i in (0, 1, 1)]
    assert repr(ExpandQuery(expander)) == f"ExpandQuery('{path}')"
    by_path = ExpandQuery(path)
    assert by_path.search("gold")["query"].tolist() == [Expander.load(path).expand("gold").composed]
    # A model that is not there is no error before a query comes.
    missing = ExpandQuery(str(tmp_path / "nowhere"))
    assert len(missing.transform(queries())) == 0
    with pytest.raises(InputError, match="nowhere"):
        missing(queries("gold"))


def test_without_pyterrier_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "aqe.pyterrier")
    monkeypatch.setitem(sys.modules, "pyterrier", None)
    with pytest.raises(DependencyError, match=r'pip install "pyterrier>=1\.1"'):
        importlib.import_module("aqe.pyterrier")
