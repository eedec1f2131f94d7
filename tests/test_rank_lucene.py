"""Exact gold ranks: Lucene's counts against a BM25 written here, ties and unmatched passages included.

The oracle knows Lucene's formula (Robertson's BM25 with idf = ln(1 + (N - df + 0.5) / (df + 0.5)), without the factor
k1 + 1, document lengths as one byte each) and nothing of the engine's code. Texts are of made-up words that the English
analyzer leaves as they are, so the oracle needs no analyzer.
"""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aqe.artifact import write_parquet
from aqe.index import jvm
from aqe.records import CORPUS, table

WORDS = [a + b + "x" for a in "bdfgk" for b in "aeou"]
K1, B = 0.9, 0.4

WORKER = """
import json, sys
from pathlib import Path
from aqe.config.data import IndexConfig
from aqe.index.lucene import build_index
from aqe.rank.lucene import LuceneRanker
out = Path(sys.argv[1])
stats = build_index(out, out / "data", IndexConfig(threads=2), lambda line: None)
ranker = LuceneRanker(out / "lucene", IndexConfig())
answers = []
for task in json.loads((out / "tasks.json").read_text()):
    golds = ranker.gold_ranks(task["texts"], task["relevant"])
    hits = ranker.search(task["texts"][0], task["k"])
    answers.append({"golds": [[g.docid, g.rank, g.score] for g in golds], "hits": [[h.docid, h.score] for h in hits]})
try:
    ranker.gold_ranks(["x"], ["not there"])
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
(out / "answers.json").write_text(json.dumps({"answers": answers, "stats": stats, "refusal": refusal, "n": ranker.num_passages}))
"""


def lucene_length(length: int) -> int:
    """A document length after its trip through Lucene's one byte: exact below 40, four significant bits above."""
    if length < 40:
        return length
    free = length - 24
    bits = free.bit_length()
    if bits < 4:
        return length
    shift = bits - 4
    return 24 + ((free >> shift) << shift)


def bm25(corpus: dict[str, list[str]], text: str) -> dict[str, np.float32]:
    """Score of every passage, float64 inside and float32 at the end as Lucene adds them up."""
    n = len(corpus)
    average = np.float32(sum(map(len, corpus.values())) / n)
    df = Counter(word for words in corpus.values() for word in set(words))
    scores = {}
    for docid, words in corpus.items():
        total = 0.0
        tf = Counter(words)
        for word, weight in Counter(text.split()).items():
            if tf[word]:
                idf = np.float32(math.log(1 + (n - df[word] + 0.5) / (df[word] + 0.5)))
                length = lucene_length(len(words))
                cache = np.float32(1) / (
                    np.float32(K1) * ((np.float32(1) - np.float32(B)) + np.float32(B) * np.float32(length) / average)
                )
                boosted = np.float32(weight) * idf
                total += float(boosted - boosted / (np.float32(1) + np.float32(tf[word]) * cache))
        scores[docid] = np.float32(total)
    return scores


def gold(scores: dict[str, np.float32], relevant: list[str]) -> tuple[str, int, float]:
    best = min(relevant, key=lambda d: (-scores[d], d.encode()))
    above = sum(s > scores[best] for s in scores.values())
    equal = sum(s == scores[best] and d.encode() < best.encode() for d, s in scores.items())
    return best, 1 + above + equal, float(scores[best])


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
    rows = [{"docid": d, "title": w[0], "text": " ".join(w[1:])} for d, w in corpus.items()]
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
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "platform")},
    )
    return corpus, tasks, json.loads((out / "answers.json").read_text())


def test_gold_ranks_equal_brute_force(answers: Any) -> None:
    corpus, tasks, result = answers
    assert result["n"] == result["stats"]["passages"] == len(corpus)
    compared = ties = zeros = 0
    for task, answer in zip(tasks, result["answers"], strict=True):
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


def test_hits_equal_brute_force(answers: Any) -> None:
    corpus, tasks, result = answers
    for task, answer in zip(tasks, result["answers"], strict=True):
        scores = bm25(corpus, task["texts"][0])
        expected = sorted((d for d in scores if scores[d] > 0), key=lambda d: (-scores[d], d.encode()))[: task["k"]]
        assert [docid for docid, _ in answer["hits"]] == expected


def test_unknown_passage_is_refused(answers: Any) -> None:
    assert "'not there' is not in the index" in answers[2]["refusal"]
    assert answers[2]["refusal"].startswith("InputError")


def test_java_comes_from_a_package() -> None:
    assert (jvm.java_home() / "lib" / "server" / "libjvm.so").exists()
    assert Path(jvm.ray_env()["LD_PRELOAD"]).name == "libjsig.so"
    assert Path(jvm.ray_env()["LD_PRELOAD"]).exists()


def test_corpus_is_the_contract() -> None:
    assert pa.schema([("docid", pa.string()), ("title", pa.string()), ("text", pa.string())]).equals(CORPUS)
