"""docs/search-engines.md: its code is valid, its function falls back, and what it says of Lucene is so."""

import ast
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fastapi import FastAPI

from aqe.artifact import write_parquet
from aqe.records import CORPUS, table
from tests.serve.test_client import Canned
from tests.tools.waiting import http_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "search-engines.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
QUERY = "what is an opera by bizet?"


def block(word: str) -> str:
    """The one block that holds `word`."""
    (found,) = [code for _, code in BLOCKS if word in code]
    return found


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[code.split("\n")[0] for _, code in BLOCKS])
def test_every_block_is_valid(language: str, code: str) -> None:
    read: dict[str, Callable[[str], object]] = {"python": ast.parse, "json": json.loads, "xml": ElementTree.fromstring}
    read[language](code)
    assert max(map(len, code.splitlines())) <= 120


def function(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`expand` of the page, asking `url`."""
    monkeypatch.setenv("AQE_API_KEY", "a key of the service")
    namespace: dict[str, Any] = {}
    exec(block("def expand").replace("http://127.0.0.1:8000", url), namespace)
    return namespace["expand"]


def test_the_function_expands_and_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # requests takes credentials from there, in place of a header of the session.
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    canned = Canned({QUERY: "Carmen"}, key="a key of the service")
    with http_server(canned.app) as url:
        expand = function(url, monkeypatch)
        assert expand(QUERY) == "what is an opera by bizet ? Carmen"
        assert expand("x" * 5_000) == "x" * 5_000
        canned.refusals = [(503, {"Retry-After": "1"})]
        assert expand(QUERY) == QUERY
    assert expand(QUERY) == QUERY  # The service is gone.


def test_the_function_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    app, given_up, answers = FastAPI(), threading.Event(), []
    app.post("/v1/expand")(lambda: answers.append(given_up.wait(60)))
    with http_server(app) as url:
        assert function(url, monkeypatch)(QUERY) == QUERY
        assert answers == []  # The server has not answered yet.
        given_up.set()


LUCENE = """
import json, sys
from pathlib import Path

exec(Path("start.py").read_text())
from aqe.config.data import IndexConfig
from aqe.index.lucene import build_index

build_index(Path("."), Path("data"), IndexConfig(threads=1), lambda line: None)
Path("lucene").rename("index")

def expand(query):
    assert query == sys.argv[1]
    return "what is an opera by bizet ? Carmen"

exec(Path("search.py").read_text())
plain = [hit.docid for hit in searcher.search(sys.argv[1], k=10)]
scores = [searcher.search(text, k=10)[0].score for text in ("carmen", "carmen carmen")]

from jnius import JavaException, autoclass

analyzer = autoclass("org.apache.lucene.analysis.en.EnglishAnalyzer")()
simple = autoclass("org.apache.lucene.queryparser.simple.SimpleQueryParser")
builder = autoclass("org.apache.lucene.util.QueryBuilder")(analyzer)
classic = autoclass("org.apache.lucene.queryparser.classic.QueryParser")("f", analyzer)
classic.setAllowLeadingWildcard(True)  # As Solr and Elasticsearch do.
weights = autoclass("java.util.HashMap")()
weights.put("f", autoclass("java.lang.Float")(1.0))
exec(Path("escaped.py").read_text())
read = []
for text in json.loads(Path("texts.json").read_text()):
    try:
        syntax = classic.parse(text).toString("")
    except JavaException:
        syntax = None
    match = builder.createBooleanQuery("f", text).toString("f")
    plain_text = simple(analyzer, weights, 0).parse(text).toString("f")
    read.append([match, plain_text, classic.parse(escaped(text)).toString("f"), syntax])
Path("out.json").write_text(json.dumps([plain, scores, read]))
"""


def test_pyserini_finds_with_the_expansion_and_lucene_reads_text_as_the_page_says(tmp_path: Path) -> None:
    rows = [
        {"docid": "d1", "title": "Carmen", "text": "a work in four acts"},
        {"docid": "d2", "title": "Opera house", "text": "where an opera is sung"},
    ]
    write_parquet(table(rows, CORPUS), tmp_path / "data" / "0.parquet")
    texts = [
        "carmen Carmen ? an opera",
        'who said "to be',
        "gold -silver +iron AND (copper OR NOT tin",
        "title: C++ a/b x^2 fuzzy~ wild* [1 TO 2] {a} \\ && || ! ?",
    ]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    (tmp_path / "start.py").write_text(block("jvm.start"))
    (tmp_path / "search.py").write_text(block("LuceneSearcher"))
    (tmp_path / "escaped.py").write_text(block("def escaped"))
    ran = subprocess.run(
        [sys.executable, "-c", LUCENE, QUERY],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    plain, (once, twice), read = json.loads((tmp_path / "out.json").read_text())
    assert plain == ["d2"]
    assert {line.split()[0] for line in ran.stdout.splitlines()} >= {"d1", "d2"}
    assert twice == pytest.approx(2 * once, abs=1e-3)  # Anserini rounds scores.
    for match, simple, escaped, syntax in read:
        assert match == simple == escaped != syntax
    assert read[0] == ["carmen carmen opera"] * 3 + ["f:carmen f:carmen f:? f:opera"]
    assert read[1][3] is None and read[1][0] == "who said"
