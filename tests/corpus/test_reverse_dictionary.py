"""The quickstart's corpus: large enough, nothing on two sides, every right answer there, no query copied from it."""

import hashlib
import re
from pathlib import Path

import pytest

from aqe import records
from aqe.artifact import write_parquet
from aqe.config.sources import SPLITS
from aqe.corpus import reverse_dictionary as rd
from aqe.corpus.judge import contains_answer, judge
from aqe.errors import DependencyError
from aqe.prompts import PROMPTS, render


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    try:
        rd.queries()
    except DependencyError as error:
        pytest.skip(str(error))


def test_passages_conform_and_docids_are_unique() -> None:
    passages = rd.passages()
    assert passages.schema == records.CORPUS
    assert 85_000 < passages.num_rows < 95_000
    docids = passages["docid"].to_pylist()
    assert len(set(docids)) == len(docids) and not any(" " in docid for docid in docids)
    lengths = [len(text.split()) for text in passages["text"].to_pylist()]
    assert min(lengths) >= rd.FEWEST_PASSAGE_WORDS and max(lengths) <= rd.PASSAGE_WORDS


def test_splits_are_large_and_ordered_by_hash() -> None:
    sizes = {split: table.num_rows for split, table in rd.queries().items()}
    total = sum(sizes.values())
    assert list(sizes) == list(SPLITS) and total > 10_000
    assert sizes["train"] / total == pytest.approx(0.5, abs=0.03)
    assert sizes["dev"] / total == pytest.approx(0.3, abs=0.02)
    for table in rd.queries().values():
        assert table.schema == records.QUERIES
        hashes = [hashlib.md5(qid.encode()).hexdigest() for qid in table["qid"].to_pylist()]
        assert hashes == sorted(hashes)


def test_no_headword_and_no_definition_is_on_two_sides_or_there_twice() -> None:
    rows = [row for table in rd.queries().values() for row in table.to_pylist()]
    for values in (
        [row["qid"] for row in rows],
        [docid for row in rows for docid in row["positives"]],
        [rd.normalise(row["text"]) for row in rows],
    ):
        assert len(set(values)) == len(values)


def test_every_positive_is_in_the_corpus_and_is_not_copied() -> None:
    texts = dict(zip(rd.passages()["docid"].to_pylist(), rd.passages()["text"].to_pylist(), strict=True))
    for table in rd.queries().values():
        for row in table.to_pylist():
            assert row["positives"]
            for docid in row["positives"]:
                assert f" {rd.normalise(row['text'])} " not in f" {rd.normalise(texts[docid])} "
                assert not rd.gives_away(docid.replace("_", " "), row["text"])


def test_answers_are_the_titles_and_positives_judge() -> None:
    title = dict(zip(rd.passages()["docid"].to_pylist(), rd.passages()["title"].to_pylist(), strict=True))
    for table in rd.queries().values():
        for row in table.to_pylist():
            assert row["answers"] == [title[docid] for docid in row["positives"]]
            assert not contains_answer(row["text"], row["answers"])


def test_every_query_is_judged_by_its_positives(tmp_path: Path) -> None:
    write_parquet(rd.passages(), tmp_path / "data" / "0.parquet")
    dev = rd.queries()["dev"]
    qrels, stats = judge(tmp_path, dev, lambda line: None)
    assert (stats["by_positives"], stats["by_answers"], stats["judged"]) == (dev.num_rows, 0, dev.num_rows)
    wanted = {(row["qid"], docid) for row in dev.to_pylist() for docid in row["positives"]}
    assert set(zip(qrels["qid"].to_pylist(), qrels["docid"].to_pylist(), strict=True)) == wanted


@pytest.mark.parametrize(
    ("headword", "definition", "expected"),
    [
        ("wealthy", "having an abundant supply of money", False),
        ("wealthy", "having wealth", True),
        ("run", "the act of running", True),
        ("cat", "a vacation spent far from home", False),
        ("chromosome", "a chromatic body in the cell", True),
        ("ice cream", "frozen cream with sugar", True),
    ],
)
def test_gives_away(headword: str, definition: str, expected: bool) -> None:
    assert rd.gives_away(headword, definition) is expected


def test_no_held_out_query_asks_for_a_word_of_the_few_shot_prompt() -> None:
    shown = set(re.findall(r"[a-z]+", render(PROMPTS["definition_few_shot"], "x").lower()))
    for split in ("dev", "test"):
        assert not shown & {docid for ids in rd.queries()[split]["positives"].to_pylist() for docid in ids}
