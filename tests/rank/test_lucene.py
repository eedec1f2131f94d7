"""Exact gold ranks on a real Lucene index: both engines against a BM25 written here, ties and unmatched passages included."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aqe.artifact import write_parquet
from aqe.index import jvm
from aqe.records import CORPUS, table
from tests.tools.bm25_oracle import WORDS, bm25, gold

WORKER = """
import json, sys
from pathlib import Path
from aqe.config.data import IndexConfig
from aqe.index.lucene import build_index
from aqe.index.convert import build_impacts
from aqe.impacts.gold import open_gold_ranker
from aqe.rank.lucene import LuceneRanker
out = Path(sys.argv[1])
stats = build_index(out, out / "data", IndexConfig(threads=2), lambda line: None)
impacts = build_impacts(out / "impacts", out / "lucene", IndexConfig(), lambda line: None)
tasks = json.loads((out / "tasks.json").read_text())
result = {"stats": stats, "built": impacts}
for ranker in (LuceneRanker(out / "lucene", IndexConfig()), open_gold_ranker(out / "impacts", IndexConfig())):
    answers = []
    for task in tasks:
        golds = ranker.gold_ranks(task["texts"], task["relevant"])
        hits = ranker.search(task["texts"][0], task["k"])
        answers.append({"golds": [[g.docid, g.rank, g.score] for g in golds], "hits": [[h.docid, h.score] for h in hits]})
    try:
        ranker.gold_ranks(["x"], ["not there"])
    except Exception as error:
        refusal = f"{type(error).__name__}: {error}"
    result[ranker.name] = {"answers": answers, "refusal": refusal}
(out / "answers.json").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, list[str]], list[dict[str, Any]], dict[str, Any]]:
    """A corpus full of ties (few words, many copies), tasks over it, and what Lucene answers in a process of its own."""
    out = tmp_path_factory.mktemp("lucene")
    draw = random.Random(1)
    corpus = {}
    for i in range(300):
        words = draw.choices(WORDS, k=draw.choice([1, 2, 3, 5, 8, 50, 90]))
        docid = draw.choice(["a", "Z", "é", "10", "9"]) + str(i)
        corpus[docid] = words
        if draw.random() < 0.4:
            corpus["copy" + str(draw.randrange(10**6)) + docid] = list(words)
    # Passages of stop words alone: Lucene gives them no term, but a length, and leaves them out of its statistics.
    for i in (0, 7, 50):
        corpus[f"0empty{i}"] = []
    rows = [{"docid": d, "title": w[0] if w else "The", "text": " ".join(w[1:])} for d, w in corpus.items()]
    draw.shuffle(rows)
    write_parquet(table(rows, CORPUS).slice(0, 200), out / "data" / "0.parquet")
    write_parquet(table(rows, CORPUS).slice(200), out / "data" / "1.parquet")
    tasks: list[dict[str, Any]] = []
    for _ in range(60):
        # Repeated words, words that no passage has, and texts without any known word.
        texts = [" ".join(draw.choices([*WORDS, "nowherex"], k=draw.choice([1, 2, 4, 12]))) for _ in range(3)]
        tasks.append(
            {"texts": [*texts, "nowherex", ""], "relevant": draw.sample(list(corpus), draw.choice([1, 1, 3])), "k": 20}
        )
    tasks.append(
        {"texts": [" ".join(f"w{i}x" for i in range(3000)) + " " + WORDS[0]], "relevant": [next(iter(corpus))], "k": 5}
    )
    (out / "tasks.json").write_text(json.dumps(tasks))
    subprocess.run(
        [sys.executable, "-c", WORKER, str(out)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
    )
    return corpus, tasks, json.loads((out / "answers.json").read_text())


@pytest.mark.parametrize("engine", ["lucene", "impacts"])
def test_gold_ranks_equal_brute_force(answers: Any, engine: str) -> None:
    corpus, tasks, result = answers
    assert result["stats"]["passages"] == result["built"]["passages"] == len(corpus)
    compared = ties = zeros = 0
    for task, answer in zip(tasks, result[engine]["answers"], strict=True):
        for text, got in zip(task["texts"], answer["golds"], strict=True):
            scores = bm25(corpus, text)
            expected = gold(scores, task["relevant"])
            assert got[0] == expected[0], text
            assert got[1] == expected[1], text
            assert got[2] == pytest.approx(expected[2], rel=2e-7), text
            compared += 1
            ties += sum(s == scores[got[0]] for s in scores.values()) > 1
            zeros += expected[2] == 0
    assert compared == 60 * 5 + 1
    assert ties > 100
    assert zeros > 100


@pytest.mark.parametrize("engine", ["lucene", "impacts"])
def test_hits_equal_brute_force(answers: Any, engine: str) -> None:
    corpus, tasks, result = answers
    for task, answer in zip(tasks, result[engine]["answers"], strict=True):
        scores = bm25(corpus, task["texts"][0])
        expected = sorted((d for d in scores if scores[d] > 0), key=lambda d: (-scores[d], d.encode()))[: task["k"]]
        assert [docid for docid, _ in answer["hits"]] == expected


def test_both_engines_have_the_same_scores(answers: Any) -> None:
    result = answers[2]
    assert result["lucene"]["answers"] == result["impacts"]["answers"]


@pytest.mark.parametrize("engine", ["lucene", "impacts"])
def test_unknown_passage_is_refused(answers: Any, engine: str) -> None:
    refusal = answers[2][engine]["refusal"]
    assert refusal.startswith("DataError")
    assert "'not there' is not in the index" in refusal


def test_java_comes_from_a_package() -> None:
    assert (jvm.java_home() / "lib" / "server" / "libjvm.so").exists()
    assert Path(jvm.ray_env()["LD_PRELOAD"]).name == "libjsig.so"
    assert Path(jvm.ray_env()["LD_PRELOAD"]).exists()


def test_corpus_is_the_contract() -> None:
    assert pa.schema([("docid", pa.string()), ("title", pa.string()), ("text", pa.string())]).equals(CORPUS)
