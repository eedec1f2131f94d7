"""The analysis without Java against Lucene's own, token for token."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
from pathlib import Path

import pytest

from aqe.index.english import analyze
from aqe.index.freeze import EXAMPLES

WIKI = Path(__file__).parents[3] / "shared" / "data" / "wiki" / "corpus.parquet"
FROZEN = Path(__file__).parents[2] / "platform" / "aqe" / "index" / "characters.py"
#: A character of each class that Lucene tells apart, and one of none.
CLASSES = [*EXAMPLES.values(), "|"]

#: Java in a process of its own: the pytest process never starts one. A line of texts in, a line of their terms out.
WORKER = """
import json, sys
from aqe.index import jvm
from aqe.index.lucene import analyzer
java = jvm.start("512m")
lucene, tokens = analyzer(java, "en"), java("io.anserini.analysis.AnalyzerUtils")
for line in sys.stdin:
    # A list's own text: no term holds a blank.
    terms = [tokens.analyze(lucene, text).toString()[1:-1] for text in json.loads(line)]
    print(json.dumps([text.split(", ") if text else [] for text in terms]), flush=True)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}

Terms = Callable[[list[str]], list[list[str]]]

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


def java(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python in a process that may start a JVM."""
    return subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, text=True, capture_output=True)


@pytest.fixture(scope="module")
def lucene() -> Iterator[Terms]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        asked, answered = process.stdin, process.stdout
        assert asked and answered

        def terms(texts: list[str]) -> list[list[str]]:
            print(json.dumps(texts), file=asked, flush=True)
            answer: list[list[str]] = json.loads(answered.readline())
            return answer

        yield terms


def differences(texts: list[str], lucene: Terms) -> list[tuple[str, list[str], list[str]]]:
    """Texts with our terms and Lucene's, where these are not the same."""
    theirs = lucene(texts)
    return [(text, ours, own) for text, own in zip(texts, theirs, strict=True) if (ours := analyze(text)) != own]


def together(pieces: Iterable[str], separator: str, size: int) -> Iterator[str]:
    """One text for every `size` pieces: no word and no emoji goes across the separator."""
    left = iter(pieces)
    while some := list(islice(left, size)):
        yield separator.join(some)


def code_points() -> Iterator[str]:
    """All but the halves of surrogate pairs, which no text has."""
    yield from (chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)


SIGNS = [
    ("★★★★ hotel lisbon", ["★", "★", "★", "★", "hotel", "lisbon"]),
    ("sonata in F♯ minor", ["sonata", "f", "♯", "minor"]),
    ("♡ letters", ["♡", "letter"]),
    ("☐ done ☒ not done", ["☐", "done", "☒", "done"]),
    ("♪ songs", ["♪", "song"]),
    ("a¸b", ["b"]),
    ("x¸y", ["x", "y"]),
]


def test_signs_that_are_terms_for_lucene(lucene: Terms) -> None:
    texts, terms = [text for text, _ in SIGNS], [terms for _, terms in SIGNS]
    assert [analyze(text) for text in texts] == terms == lucene(texts)


def test_every_code_point_is_lucenes(lucene: Terms) -> None:
    """Alone, between letters and between digits."""
    differ = differences(list(together((f"{c}|a{c}b|1{c}2" for c in code_points()), "|", 512)), lucene)
    pieces = [piece for text, _, _ in differ for piece in text.split("|")]
    assert not differ, differences(pieces, lucene)[:5]


@pytest.mark.slow
def test_stems_and_possessives_of_every_code_point_are_lucenes(lucene: Terms) -> None:
    differ = differences(list(together((f"{c}{c}ing|a{c}ies|x{c}s|x{c}s'" for c in code_points()), " ", 512)), lucene)
    pieces = [piece for text, _, _ in differ for piece in text.split(" ")]
    assert not differ, differences(pieces, lucene)[:5]


def test_every_three_classes_are_lucenes(lucene: Terms) -> None:
    texts = ["".join(some) for length in (1, 2, 3) for some in product(CLASSES, repeat=length)]
    differ = differences(texts, lucene)
    assert not differ, differ[:5]


def test_strings_of_all_classes_are_lucenes(lucene: Terms) -> None:
    draw, texts = random.Random(1), []
    for _ in range(20_000):
        # Of few classes, so that long rules are met.
        few = draw.sample(CLASSES, draw.randrange(2, 9))
        texts.append("".join(draw.choices(few, k=draw.randrange(4, 16))))
    differ = differences(texts, lucene)
    assert not differ, differ[:5]


@pytest.mark.slow
def test_every_four_classes_are_lucenes(lucene: Terms) -> None:
    differ = differences(list(together(map("".join, product(CLASSES, repeat=4)), " ", 64)), lucene)
    assert not differ, differences([piece for text, _, _ in differ for piece in text.split(" ")], lucene)[:5]


def test_the_frozen_classes_are_lucenes() -> None:
    done = java("-m", "aqe.index.freeze")
    assert done.returncode == 0, done.stderr
    assert done.stdout == FROZEN.read_text()


def test_a_class_that_the_grammar_does_not_know_is_an_error() -> None:
    done = java("-c", "from aqe.index import freeze, jvm; del freeze.EXAMPLES['Tag']; freeze.frozen(jvm.start())")
    assert "DependencyError: Lucene 9.9.1 has 29 classes of characters where the grammar" in done.stderr


def test_a_long_row_of_any_joiner_is_read_as_lucene_does(lucene: Terms) -> None:
    texts = [row * 300 + "a " + row * 254 + "bc é" for row in ("_", "‿", "\u203f_")]
    assert not differences(texts, lucene)


def test_tokens_that_are_too_long_are_cut_where_lucene_cuts_them(lucene: Terms) -> None:
    draw, texts = random.Random(2), []
    # A token's length is counted in UTF-16 units.
    characters = [*CLASSES, "\U0001d400", "\U00020000"]
    for _ in range(1500):
        few, row = draw.sample(characters, draw.randrange(1, 5)), draw.choice([1, 3, 40, 400])
        texts.append("".join(draw.choice(few) * draw.randrange(1, row + 1) for _ in range(max(4, 400 // row))))
    assert not differences(texts, lucene)


def test_terms_are_lucenes(lucene: Terms) -> None:
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
    differ = differences(texts, lucene)
    assert not differ, differ[:5]


def test_terms_of_wikipedia_are_lucenes(lucene: Terms) -> None:
    if not WIKI.exists():
        pytest.skip("needs ../shared/data/wiki/corpus.parquet")
    import pyarrow.parquet as pq

    texts = pq.ParquetFile(WIKI).read_row_group(0, columns=["text"])["text"].to_pylist()[:3000]
    assert not differences(texts, lucene)
