"""The analysis without Java against Lucene's own, token for token."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from aqe.index.english import analyze

WIKI = Path(__file__).parents[3] / "shared" / "data" / "wiki" / "corpus.parquet"

#: Java in a process of its own: the pytest process never starts one.
WORKER = """
import json, sys
from aqe.index.analysis import query_analyzer
from aqe.index import jvm
from aqe.index.lucene import analyzer
java = jvm.start("512m")
lucene, tokens = analyzer(java, "en"), java("io.anserini.analysis.AnalyzerUtils")
texts = json.load(open(sys.argv[1]))
json.dump([[str(t) for t in tokens.analyze(lucene, text)] for text in texts], open(sys.argv[2], "w"))
"""

TRICKY = [
    "",
    "the a an",
    "The dog's bone, the dogs' bones; O'Reilly’s JAMES'S",
    "possibly biology technologies archaeology us s ponies caresses hopping hoping sky happy relational",
    "U.S.A. 3.14 1,000,000.5 1.2.3 a.b:c x_y __init__ 12_34 foo@bar.com http://example.org/a?b=c#d C++ C# .net",
    'Ünïcödé NAÏVE İstanbul ΣΊΣΥΦΟΣ straße ﬁn 한국어 조선 日本語 ひらがな カタカナ 中文字 ไทย ภาษาไทย שלום ש"ל العربية',
    "e\u0301cole n\u0303 a\u200db soft\u00adhyphen zero\u200bwidth non\u2011breaking",
    "👍🏽 👩‍👩‍👧 🇩🇪🇫🇷 1️⃣ ☃ ©",
    "m² km³ ½ Ⅷ ① １２３ ｆｕｌｌ",
    "x" * 300 + " " + "y" * 255 + " " + "1," * 200 + " " + "_" * 3000 + "a " + "_a" * 150,
]


def lucene(texts: list[str], tmp_path: Path) -> list[list[str]]:
    asked, answered = tmp_path / "texts.json", tmp_path / "terms.json"
    asked.write_text(json.dumps(texts))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    subprocess.run([sys.executable, "-c", WORKER, str(asked), str(answered)], check=True, env=env)
    terms: list[list[str]] = json.loads(answered.read_text())
    return terms


def test_terms_are_lucenes(tmp_path: Path) -> None:
    draw = random.Random(0)
    alphabet = [
        *"aeisyTS0129",
        *" \t\n",
        *"'’.,:;_-/\"&@#",
        *"éßİΣあア漢한ไש",
        "\u0301",
        "\u200d",
        "\u00ad",
        "²",
        "👍",
        "🏽",
    ]
    drawn = ["".join(draw.choices(alphabet, k=draw.randrange(1, 25))) for _ in range(3000)]
    # Endings in a row, after letters in pairs or not: where stemmers part.
    starts = ["", *"bcdhkvwxylsz7", "kk", "vv", "xx", "hh", "ll", "ss", "tt", "00", "tre", "hopp", "y", "o", "ea", "qu"]
    endings = "s ed eed ing ies y bli bly blies logi logy logies ational enci izer ement ion alize icate ful ness e ll"
    words = [
        "".join(draw.choices(starts, k=2) + draw.choices(endings.split(), k=draw.randrange(4))) for _ in range(6000)
    ]
    texts = [*TRICKY, *drawn, " ".join(words)]
    differ = [(t, analyze(t), own) for t, own in zip(texts, lucene(texts, tmp_path), strict=True) if analyze(t) != own]
    assert not differ, differ[:5]


def test_terms_of_wikipedia_are_lucenes(tmp_path: Path) -> None:
    if not WIKI.exists():
        pytest.skip("needs ../shared/data/wiki/corpus.parquet")
    import pyarrow.parquet as pq

    texts = pq.ParquetFile(WIKI).read_row_group(0, columns=["text"])["text"].to_pylist()[:3000]
    ours, theirs = [analyze(text) for text in texts], lucene(texts, tmp_path)
    assert ours == theirs
