"""Which passages are asked for a query: by a hash, long enough, their beginning and title shown."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aqe.artifact import read_parquet, write_parquet
from aqe.errors import InputError
from aqe.records import CORPUS, table
from aqe.synthetic.passages import FEWEST_WORDS, MOST_WORDS, choose, shown, words, write_passages

LONG = "one two three four five six seven eight nine ten"


def corpus(path: Path, rows: list[dict[str, Any]], shards: int = 3) -> Path:
    for shard in range(shards):
        write_parquet(table(rows[shard::shards], CORPUS), path / "data" / f"{shard}.parquet", 4)
    return path


def passages(number: int) -> list[dict[str, Any]]:
    return [{"docid": f"d{i}", "title": f"T{i}", "text": LONG if i % 4 else "short"} for i in range(number)]


def test_a_passage_is_shown_with_its_title_on_one_line() -> None:
    assert shown("A  quarrel", f"He said\n{LONG}.") == f"A quarrel. He said {LONG}."
    assert shown("", LONG) == LONG
    assert shown(LONG, "") == LONG


def test_a_passage_is_long_enough_with_its_title_and_cut_after_so_many_words() -> None:
    few = " ".join(["word"] * (FEWEST_WORDS - 1))
    assert shown("", few) is None
    assert shown("Title", few) == f"Title. {few}"
    most = " ".join(f"w{i}" for i in range(MOST_WORDS)) + "."
    assert shown("", most) == most
    assert shown("", f"{most} more") == most[:-1]


def test_where_no_blanks_stand_between_words_characters_count() -> None:
    assert words("東京 tower は高い") == ["東", "京", "tower", "は", "高", "い"]
    assert shown("", "水の都" * 3) is None
    assert len(shown("", "水の都" * 100) or "") == MOST_WORDS


def test_those_with_the_smallest_hashes_are_chosen_however_the_corpus_is_cut(tmp_path: Path) -> None:
    rows = passages(60)
    of = {row["docid"]: shown(row["title"], row["text"]) for row in rows}
    ordered = sorted((d for d in of if of[d]), key=lambda docid: hashlib.sha256(docid.encode()).hexdigest())
    for shards in (1, 3):
        files = sorted((corpus(tmp_path / str(shards), rows, shards) / "data").iterdir())
        for number in (1, 7, 45, 1000):
            assert choose(files, number) == [(docid, of[docid]) for docid in ordered[:number]]


def test_more_training_queries_leave_dev_and_test_as_they_are(tmp_path: Path) -> None:
    at = corpus(tmp_path / "corpus", passages(60))

    def asked(**numbers: int) -> dict[str, list[str]]:
        out = tmp_path / str(numbers["train"])
        assert write_passages(out, at, numbers) == {"passages": sum(numbers.values()), "wanted": sum(numbers.values())}
        rows = read_parquet(out / "queries.parquet").to_pylist()
        assert len({row["docid"] for row in rows}) == len(rows)
        return {key: [row["docid"] for row in rows if row["key"] == key] for key in numbers}

    few, more = asked(train=5, dev=3, test=4), asked(train=30, dev=3, test=4)
    assert {key: len(docids) for key, docids in more.items()} == {"train": 30, "dev": 3, "test": 4}
    assert few["dev"] == more["dev"] and few["test"] == more["test"]
    assert few["train"] == more["train"][:5]


def test_too_few_passages_are_dealt_out_in_the_same_shares(tmp_path: Path) -> None:
    at = corpus(tmp_path / "corpus", passages(40))
    stats = write_passages(tmp_path / "out", at, {"train": 160, "dev": 80, "test": 60})
    assert stats == {"passages": 30, "wanted": 300}
    keys = Counter(read_parquet(tmp_path / "out" / "queries.parquet")["key"].to_pylist())
    assert keys == {"train": 16, "dev": 8, "test": 6}


def test_a_corpus_of_short_passages_is_told(tmp_path: Path) -> None:
    at = corpus(tmp_path / "corpus", [{"docid": "d", "title": "", "text": "short"}] * 3)
    with pytest.raises(InputError, match="has 10 words or more"):
        write_passages(tmp_path / "out", at, {"all": 5})
