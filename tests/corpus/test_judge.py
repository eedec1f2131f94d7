"""Judging: DPR's rule on hand-made cases, the matcher against brute force, and a whole corpus on Ray."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from aqe import records
from aqe.config.sources import FileQueries
from aqe.corpus import judge
from aqe.corpus.queries import read_queries
from aqe.errors import ArtifactError, InputError

WIKI = Path(os.environ.get("AQE_WIKI", Path(__file__).resolve().parents[3] / "shared" / "data" / "wiki"))


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("He lives in the United States.", "united states", True),
        ("BEYONCE\u0301 sang", "Beyoncé", True),
        ("Beyonce sang", "Beyoncé", False),  # accents are kept, only their form is made one
        ("the U.S. Army", "U.S.", True),
        ("the U.S. Army", "US", False),
        ("the U S Army", "U.S.", False),
        ("a cathedral", "cat", False),
        ("cats", "cat", False),
        ("born on 23 February, 2018", "February 2018", False),
        ("born on 23 February, 2018", "February, 2018", True),
        ("rock 'n' roll", "rock 'N' roll", True),
        ("well-known", "well known", False),
        ("one\u00a0two\u200bthree", "two three", True),
        ("ΟΔΟΣ'Α", "οδος", True),  # lower case is made of each token: its last sigma is a final one
        ("日本 tower", "日本", True),
        ("anything", "", False),
        ("", "anything", False),
    ],
)
def test_dpr_rule(text: str, answer: str, expected: bool) -> None:
    assert judge.contains_answer(text, [answer]) is expected
    assert judge.Matcher([[answer]]).find(text) == [0] * expected


@given(st.text(st.characters(max_codepoint=127)))
def test_fast_path_for_ascii_gives_the_same_tokens(text: str) -> None:
    plain = regex.findall(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", text)
    assert judge.tokens(text) == [token.lower() for token in plain]


# Few tokens, so that phrases overlap, contain each other and stand at the ends.
_words = st.lists(st.sampled_from(["a", "B", "É", "e\u0301", "u.s.", "the", "1,000", "-", "ab"]), max_size=12).map(
    " ".join
)


@given(st.lists(_words, max_size=5), st.lists(st.lists(_words, max_size=4), max_size=6))
def test_matcher_finds_what_brute_force_finds(texts: list[str], answers: list[list[str]]) -> None:
    matcher = judge.Matcher(answers)
    for text in texts:
        assert matcher.find(text) == [i for i, a in enumerate(answers) if judge.contains_answer(text, a)]


@given(st.text(max_size=30), st.lists(st.text(max_size=3), max_size=5))
def test_matcher_on_any_text(text: str, answers: list[str]) -> None:
    assert judge.Matcher([answers]).find(text) == [0] * judge.contains_answer(text, answers)


def write_corpus(path: Path, rows: list[tuple[str, str]], shard: int = 2) -> Path:
    (path / "data").mkdir(parents=True)
    for start in range(0, len(rows), shard):
        table = records.table(
            ({"docid": d, "title": "", "text": t} for d, t in rows[start : start + shard]), records.CORPUS
        )
        pq.write_table(table, path / "data" / f"{start:05}.parquet")
    return path


def queries_of(*rows: dict[str, Any]) -> pa.Table:
    absent: dict[str, Any] = {"text": "?", "answers": [], "positives": [], "match": "dpr", "excluded": []}
    return records.table(
        ({"relevance": [1] * len(row.get("positives", []))} | absent | row for row in rows), records.QUERIES
    )


def test_judgement_of_a_small_corpus(ray_cluster: None, tmp_path: Path) -> None:
    passages = [("d1", "Paris is in France"), ("d2", "nothing"), ("d10", "paris, Texas"), ("d3", "a comparison")]
    corpus = write_corpus(tmp_path / "corpus", passages)
    queries = queries_of(
        {"qid": "both", "answers": ["paris"], "positives": ["d2", "gone", "d2"]},
        {"qid": "answer", "answers": ["Paris", "in France"]},
        {"qid": "no match", "answers": ["Berlin"]},
        {"qid": "unknown", "answers": ["paris"], "positives": ["gone"]},
        {"qid": "bare"},
    )
    said: list[str] = []
    stats = judge.write_judgement(tmp_path / "out", corpus, queries, said.append)
    qrels = pq.read_table(tmp_path / "out" / "qrels.parquet")
    assert qrels.schema == records.QRELS
    assert qrels.to_pylist() == [
        {"qid": "answer", "docid": "d1", "relevance": 1},
        {"qid": "answer", "docid": "d10", "relevance": 1},
        {"qid": "both", "docid": "d2", "relevance": 1},
    ]
    assert stats == {
        "queries": 5,
        "judged": 2,
        "by_positives": 2,
        "by_answers": 2,
        "without_relevant": 3,
        "relevant_pairs": 3,
        "not_relevant_pairs": 0,
        "coverage": 0.4,
        "unknown_positives": 2,
    }
    ready = pq.read_table(tmp_path / "out" / "queries.parquet")
    assert ready.schema == records.JUDGED
    assert [(q["qid"], q["relevant"], q["grades"], q["answers"]) for q in ready.to_pylist()] == [
        ("both", ["d2"], [1], ["paris"]),
        ("answer", ["d1", "d10"], [1, 1], ["Paris", "in France"]),
    ]
    aside = pq.read_table(tmp_path / "out" / "set_aside.parquet").to_pylist()
    assert {row["qid"]: row["reason"] for row in aside} == {
        "no match": "no passage contains an answer",
        "unknown": "none of its positives is in the corpus",
        "bare": "nobody says what is relevant: it has neither answers nor positives, and no judgement",
    }
    assert pq.read_table(tmp_path / "out" / "dead_letters.parquet").num_rows == 2
    assert any("2 of 5 queries" in line for line in said)


@pytest.mark.parametrize(
    ("text", "answer", "match", "found"),
    [
        ("鲁迅出生于浙江绍兴。", "绍兴", "substring", True),
        ("鲁迅出生于浙江绍兴。", "绍兴", "dpr", False),
        ("夏目漱石は東京で生まれた。", "東京", "substring", True),
        ("서울은 대한민국의 수도이다", "서울", "substring", True),
        ("กรุงเทพเป็นเมืองหลวง", "กรุงเทพ", "substring", True),
        ("Sie wurde in München geboren.", "mu\u0308nchen", "substring", True),
        ("Ｆｕｌｌ  width", "full width", "substring", True),
        ("a cathedral", "cat", "substring", True),
        ("anything", "", "substring", False),
        ("in nineteen-forty 1984", r"19\d\d", "regex", True),
        ("in nineteen-forty 1984", r"19\d\d", "dpr", False),
        ("in NINETEEN-forty", "^in nine|never", "regex", True),
        ("Café de Flore", "cafe\u0301", "regex", True),
        ("Café de Flore", "cafe", "substring", False),
        ("anything", "", "regex", False),
    ],
)
def test_rules(text: str, answer: str, match: str, found: bool) -> None:
    # Between queries of other rules, so that numbers must be the right ones.
    rules = judge.Rules([["nowhere"], [answer], ["nowhere"]], ["dpr", match, "regex"])
    assert rules.find(text) == [1] * found


def test_expressions_that_are_none_or_take_for_ever_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'\(' is no regular expression"):
        judge.Rules([["("]], ["regex"])
    monkeypatch.setattr(judge, "_PATTERN_SECONDS", 0.01)
    with pytest.raises(InputError, match=r"takes more than 0\.01 s for one passage"):
        judge.Rules([[r"(x|x|xx)+[yz]$"]], ["regex"]).find("x" * 60 + "az")


def test_grades_exclusions_and_a_script_without_blanks(ray_cluster: None, tmp_path: Path) -> None:
    corpus = write_corpus(
        tmp_path / "corpus", [("d1", "one"), ("d2", "two"), ("q4", "绍兴 itself"), ("d3", "在绍兴。")]
    )
    queries = queries_of(
        {"qid": "q1", "positives": ["d1", "d2", "gone"], "relevance": [2, 0, 1]},
        {"qid": "q2", "positives": ["d1"], "relevance": [-1]},
        {"qid": "q3", "answers": ["绍兴"]},
        {"qid": "q4", "answers": ["绍兴"], "match": "substring", "excluded": ["q4"]},
        {"qid": "q5", "positives": ["d1"], "excluded": ["q5"]},
    )
    said: list[str] = []
    stats = judge.write_judgement(tmp_path / "out", corpus, queries, said.append)
    assert (stats["judged"], stats["relevant_pairs"], stats["not_relevant_pairs"]) == (4, 4, 2)
    assert any("1 of them have answers in a script without blanks" in line for line in said)
    ready = {row["qid"]: row for row in pq.read_table(tmp_path / "out" / "queries.parquet").to_pylist()}
    assert {qid: (row["relevant"], row["grades"], row["excluded"]) for qid, row in ready.items()} == {
        "q1": (["d1"], [2], []),
        # Of `绍兴 itself` the rule finds the word, because a blank follows.
        "q3": (["q4"], [1], []),
        "q4": (["d3"], [1], ["q4"]),
        # The corpus has no passage of its qid.
        "q5": (["d1"], [1], []),
    }
    aside = pq.read_table(tmp_path / "out" / "set_aside.parquet").to_pylist()
    assert {row["qid"]: row["reason"] for row in aside} == {"q2": "no passage is judged relevant"}


def test_no_answer_found_at_all(ray_cluster: None, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [("d1", "x")])
    qrels, stats = judge.judge(corpus, queries_of({"qid": "q", "answers": ["y"]}), lambda _: None)
    assert qrels.schema == records.QRELS and qrels.num_rows == 0
    assert stats["without_relevant"] == 1


def test_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no Parquet file"):
        judge.judge(tmp_path, queries_of({"qid": "q", "positives": ["d"]}))


@pytest.fixture
def wiki_part(tmp_path: Path) -> Iterator[pa.Table]:
    if not (WIKI / "corpus.parquet").exists():
        pytest.skip(f"the Wikipedia sample is not at {WIKI} (set AQE_WIKI)")
    with pq.ParquetFile(WIKI / "corpus.parquet") as source:
        yield pa.Table.from_batches([next(source.iter_batches(batch_size=20_000))])


def test_wikipedia_agrees_with_brute_force(ray_cluster: None, tmp_path: Path, wiki_part: pa.Table) -> None:
    pq.write_table(wiki_part, tmp_path / "corpus.parquet", row_group_size=5_000)
    config = FileQueries(format="jsonl", path=WIKI / "nq.dev.jsonl.gz", order="file", limit=50)
    queries, dead = read_queries(config)
    assert queries.num_rows == 50 and dead.num_rows == 0
    qrels, _ = judge.judge(tmp_path / "corpus.parquet", queries, lambda _: None)
    texts = zip(wiki_part["docid"].to_pylist(), wiki_part["text"].to_pylist(), strict=True)
    # Brute force with the plain rule, on strings of tokens: a blank can stand in no token.
    passages = [(d, f" {' '.join(judge.tokens(t))} ") for d, t in texts]
    expected = [
        (query["qid"], docid)
        for query in queries.to_pylist()
        for docid, text in passages
        if any(f" {' '.join(judge.tokens(answer))} " in text for answer in query["answers"])
    ]
    assert list(zip(qrels["qid"].to_pylist(), qrels["docid"].to_pylist(), strict=True)) == sorted(expected)
    assert expected
