"""Readers: good rows conform, bad rows are dead letters with file and line, missing things are told in words."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aqe import records
from aqe.config.data import FileCorpus, FileQueries, SplitsConfig
from aqe.corpus import read
from aqe.errors import InputError


def write_lines(path: Path, *lines: Any) -> Path:
    data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def corpus_of(path: Path, form: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    dead: read.Dead = []
    batches = list(read.read_corpus(FileCorpus.model_validate({"format": form, "path": path}), dead))
    assert all(batch.schema == records.CORPUS for batch in batches)
    records.table(dead, records.DEAD_LETTERS)  # every dead letter can be written
    return [row for batch in batches for row in batch.to_pylist()], dead


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_bad_lines_are_dead_letters_with_file_and_line(tmp_path: Path, name: str) -> None:
    file = write_lines(
        tmp_path / name,
        {"docid": "d1", "text": "one"},
        "{not json",
        [1, 2],
        {"docid": "d2", "title": "T", "text": "two", "extra": 5},
        {"docid": "d3"},
        {"docid": "d4", "text": "  "},
        {"docid": 5, "text": "five"},
        {"docid": "d1", "text": "again"},
        {"docid": "d 6", "text": "six"},
        {"docid": "d7", "title": None, "text": "seven"},
        '{"docid": "d8", "text": "half \\ud800"}',
        '"\\ud800"',
    )
    rows, dead = corpus_of(file, "jsonl")
    assert rows == [
        {"docid": "d1", "title": "", "text": "one"},
        {"docid": "d2", "title": "T", "text": "two"},
        {"docid": "d7", "title": "", "text": "seven"},
    ]
    assert [int(d["reason"].split(f"{name}:")[1].split()[0]) for d in dead] == [2, 3, 5, 6, 7, 8, 9, 11, 12]
    assert "has no text; it has" in dead[2]["reason"]
    assert "docid that is not text: 5" in dead[4]["reason"]
    assert "'d1' of an earlier row" in dead[5]["reason"]


def test_bytes_that_are_not_utf8_are_a_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"docid": "a", "text": "\xff"}\n{"docid": "b", "text": "ok"}\n')
    rows, dead = corpus_of(tmp_path / "a.jsonl", "jsonl")
    assert [row["docid"] for row in rows] == ["b"]
    assert len(dead) == 1


def test_parquet_directory_without_titles_and_with_a_docid_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table({"docid": ["a", "b"], "text": ["x", None]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": ["y", "z"], "docid": ["a", "c"], "n": [1, 2]}), tmp_path / "2.parquet")
    rows, dead = corpus_of(tmp_path, "parquet")
    assert rows == [{"docid": "a", "title": "", "text": "x"}, {"docid": "c", "title": "", "text": "z"}]
    assert [d["reason"].split("/")[-1] for d in dead] == [
        "1.parquet:2 has no text; it has title, docid",
        "2.parquet:1 has the docid 'a' of an earlier row",
    ]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_missing_column_is_told_with_those_that_are_there(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"_id": ["a"], "text": ["x"]}), path)
    else:
        write_lines(path, {"_id": "a", "text": "x"})
    with pytest.raises(InputError, match=r"(?s)docid.*_id"):
        corpus_of(path, form)


def test_missing_empty_and_broken_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        corpus_of(tmp_path / "no.jsonl", "jsonl")
    with pytest.raises(InputError, match=r"no file named \*\.parquet; it holds nothing"):
        corpus_of(tmp_path, "parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        corpus_of(tmp_path, "parquet")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"docid": "a", "text": "x"}\n' * 9)[:-9])
    with pytest.raises(InputError, match="cannot be read as jsonl"):
        corpus_of(tmp_path / "cut.jsonl.gz", "jsonl")


def test_queries_take_order_skip_and_limit_of_each_file(tmp_path: Path) -> None:
    for name in "ab":
        lines = [{"qid": f"{name}{i}", "text": f"{name} {i}", "answers": ["x"]} for i in range(20)]
        write_lines(tmp_path / f"{name}.jsonl", *lines, {"qid": f"{name}0", "text": "twice"}, {"qid": "z", "text": 3})

    def qids(**options: Any) -> list[str]:
        config = FileQueries.model_validate({"format": "jsonl", "path": tmp_path, **options})
        queries, dead = read.read_queries(config)
        assert queries.schema == records.QUERIES
        assert dead.num_rows == 4
        found: list[str] = queries["qid"].to_pylist()
        return found

    assert qids(order="file", skip=1, limit=2) == ["a1", "a2", "b1", "b2"]
    hashed = qids()
    assert hashed != sorted(hashed) and sorted(hashed[:20]) == sorted(f"a{i}" for i in range(20))
    assert qids(skip=3, limit=4) == hashed[3:7] + hashed[23:27]


def test_queries_without_optional_columns_and_with_wrong_lists(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "q.jsonl",
        {"qid": "1", "text": "a", "answers": None, "positives": ["d"]},
        {"qid": "2", "text": "b"},
        {"qid": "3", "text": "c", "answers": "not a list"},
        {"qid": "4", "text": "d", "answers": [1]},
    )
    queries, dead = read.read_queries(FileQueries(format="jsonl", path=file, order="file"))
    assert queries.to_pylist() == [
        {"qid": "1", "text": "a", "answers": [], "positives": ["d"], "dataset": "q"},
        {"qid": "2", "text": "b", "answers": [], "positives": [], "dataset": "q"},
    ]
    assert dead.num_rows == 2


def test_datasets_are_dealt_out_in_turn_and_a_question_belongs_to_the_first(tmp_path: Path) -> None:
    rows = {
        "large": [{"qid": f"l{i}", "text": f"large {i}"} for i in range(5)],
        "small.test": [{"qid": f"s{i}", "text": f"Large {i}?"} for i in range(2)] + [{"qid": "s2", "text": "large 9"}],
    }
    for name, lines in rows.items():
        write_lines(tmp_path / f"{name}.jsonl", *lines)
    for split in ("train", "dev"):
        write_lines(tmp_path / f"{split}.jsonl", {"qid": split, "text": split})

    def of(*names: str) -> FileQueries:
        return FileQueries(format="jsonl", path=[tmp_path / f"{name}.jsonl" for name in names], order="file")

    both = of("small.test", "large")
    queries, _ = read.read_queries(both)
    assert queries["qid"].to_pylist() == ["s0", "l0", "s1", "l1", "s2", "l2", "l3", "l4"]
    splits = SplitsConfig(train=of("train"), dev=of("dev"), test=both)
    assert splits.datasets("test") == ("small.test", "large")
    stats = read.write_queries(tmp_path / "out", splits)
    kept = pq.read_table(tmp_path / "out" / "test.parquet")
    assert kept["qid"].to_pylist() == ["s0", "s1", "s2", "l2", "l3", "l4"]
    assert set(kept["dataset"].to_pylist()) == {"small.test", "large"}
    reasons = pq.read_table(tmp_path / "out" / "dead_letters.parquet")["reason"].to_pylist()
    assert reasons == ["l0: small.test asks the same", "l1: small.test asks the same"] and stats["shared"] == 2
    # In the other order the questions are the other one's.
    other = splits.model_copy(update={"test": of("large", "small.test")})
    read.write_queries(tmp_path / "other", other)
    kept = pq.read_table(tmp_path / "other" / "test.parquet")
    assert kept["qid"].to_pylist() == ["l0", "l1", "l2", "s2", "l3", "l4"]


def test_write_corpus_writes_shards_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "BATCH_ROWS", 10)
    monkeypatch.setattr(read, "SHARD_ROWS", 20)
    docids = [f"d{i}" for i in range(45)]
    pq.write_table(pa.table({"docid": [*docids, "d0"], "text": ["t"] * 46}), tmp_path / "in.parquet")
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "00099.parquet").write_bytes(b"left by an unfinished run")
    stats = read.write_corpus(out, FileCorpus(format="parquet", path=tmp_path / "in.parquet"))
    assert stats == {"passages": 45, "dead": 1}
    assert sorted(p.name for p in (out / "data").iterdir()) == [f"0000{i}.parquet" for i in range(3)]
    assert pq.read_table(out / "data")["docid"].to_pylist() == docids
    assert pq.read_table(out / "dead_letters.parquet").schema == records.DEAD_LETTERS


def test_write_queries_keeps_splits_apart(tmp_path: Path) -> None:
    splits = {
        "train": [("a", "Who is A?"), ("b", "who is  b"), ("t1", "x"), ("c", "kept")],
        "dev": [("d1", "who is B ?"), ("t2", "kept in test only")],
        "test": [("t1", "who is a"), ("t2", "z")],
    }
    for name, rows in splits.items():
        write_lines(tmp_path / f"{name}.jsonl", *({"qid": q, "text": t} for q, t in rows))
    config = SplitsConfig.model_validate(
        {name: {"format": "jsonl", "path": tmp_path / f"{name}.jsonl"} for name in splits}
    )
    stats = read.write_queries(tmp_path / "out", config)
    left = {name: pq.read_table(tmp_path / "out" / f"{name}.parquet")["qid"].to_pylist() for name in splits}
    assert {name: sorted(qids) for name, qids in left.items()} == {"train": ["c"], "dev": ["d1"], "test": ["t1", "t2"]}
    assert stats == {"train": 1, "dev": 1, "test": 2, "shared": 4, "dead": 4}
    reasons = pq.read_table(tmp_path / "out" / "dead_letters.parquet")["reason"].to_pylist()
    assert any("b: its text is also in a split that train is" in reason for reason in reasons)


def test_several_sources_and_questions_that_are_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", *({"qid": f"a{i}", "text": f"question {i}?"} for i in range(6)))
    write_lines(tmp_path / "b.jsonl", *({"qid": f"b{i}", "text": f"Question {i}"} for i in (1, 3)))
    write_lines(tmp_path / "c.jsonl", {"qid": "c", "text": "another"}, {"qid": "a0", "text": "a qid of the first"})
    first = FileQueries(
        format="jsonl", path=tmp_path / "a.jsonl", without=(tmp_path / "b.jsonl",), order="file", limit=3
    )
    second = FileQueries(format="jsonl", path=[tmp_path / "c.jsonl"], order="file")
    queries, dead = read.read_queries(first, second)
    assert queries["qid"].to_pylist() == ["a0", "c", "a2", "a4"]
    assert queries["dataset"].to_pylist() == ["a", "c", "a", "a"]
    assert [reason.split("/")[-1] for reason in dead["reason"].to_pylist()] == [
        "c.jsonl:2 has the qid 'a0' of an earlier row"
    ]
    splits = SplitsConfig(train=(first, second), dev=second, test=second)
    assert splits.datasets("train") == ("a", "c") and splits.datasets("dev") == ("c",)


def test_what_is_left_out_needs_no_ids_and_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("nq", "trivia"):
        (tmp_path / folder).mkdir()
        rows = [{"qid": f"{folder}{i}", "text": f"{folder} question {i}"} for i in range(4)]
        write_lines(tmp_path / folder / "queries.jsonl", *rows, {"qid": f"{folder}-same", "text": "asked by both"})
        write_lines(
            tmp_path / folder / "out.jsonl", *({"qid": str(i), "text": f"{folder} question {i}"} for i in (1, 2))
        )
    both = FileQueries(
        format="jsonl",
        path=[tmp_path / folder / "queries.jsonl" for folder in ("nq", "trivia")],
        without=tuple(tmp_path / folder / "out.jsonl" for folder in ("nq", "trivia")),
        order="file",
    )
    queries, _ = read.read_queries(both)
    assert queries["qid"].to_pylist() == ["nq0", "trivia0", "nq3", "trivia3", "nq-same", "trivia-same"]
    assert set(queries["dataset"].to_pylist()) == {"nq/queries", "trivia/queries"}
    write_lines(tmp_path / "other.jsonl", {"qid": "o", "text": "other"})
    write_lines(tmp_path / "dev.jsonl", {"qid": "v", "text": "dev"})
    one, dev = (FileQueries(format="jsonl", path=tmp_path / name) for name in ("other.jsonl", "dev.jsonl"))
    splits = SplitsConfig(train=one, dev=dev, test=both)
    assert splits.datasets("test") == ("nq/queries", "trivia/queries")
    assert read.write_queries(tmp_path / "out", splits)["shared"] == 1
