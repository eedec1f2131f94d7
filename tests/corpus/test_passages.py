"""A corpus from files: what is a passage, what is set aside with file, line and reason, each docid once."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe import records
from aqe.artifact import read_parquet
from aqe.config.sources import FileCorpus
from aqe.corpus import formats, passages, rows
from aqe.corpus.columns import PASSAGES, Names, as_text, as_texts
from aqe.corpus.contract import counted
from aqe.corpus.passages import read_corpus, write_corpus
from aqe.errors import InputError
from aqe.nodes import Nodes

HERE = Nodes((1, 1), 0, {}, False)


def write_lines(path: Path, *lines: Any) -> Path:
    data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def corpus_of(path: Path, form: str, **how: Any) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    dead: list[dict[str, str]] = []
    batches = list(read_corpus(FileCorpus.model_validate({"format": form, "path": path, **how}), dead))
    assert all(batch.schema == records.CORPUS for batch in batches)
    records.table(dead, records.DEAD_LETTERS)  # every dead letter can be written
    return [row for batch in batches for row in batch.to_pylist()], dead


def reasons(dead: list[dict[str, str]]) -> list[tuple[int, str]]:
    """(line, reason)."""
    return [(int(one["place"].rpartition(":")[2]), one["reason"]) for one in dead]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_odd_rows(tmp_path: Path, name: str) -> None:
    file = write_lines(
        tmp_path / name,
        {"docid": "d1", "text": "one"},
        "{not json",
        {"docid": 7, "title": "T", "text": "a number", "extra": 5},
        {"docid": "007", "title": None, "text": "zeros stay"},
        {"docid": "a b", "text": "a blank"},
        '{"docid": "n1", "title": NaN, "text": "not a number"}',
        {"docid": "n2", "title": 1984, "text": "a number as title"},
        {"docid": "n3", "title": ["no"], "text": "a list as title"},
        {"docid": "t1", "title": "only a title", "text": ""},
        {"docid": "t2", "title": "only a title"},
        {"docid": "d3"},
        {"docid": "c1", "title": "", "text": "\u0000\u0001"},
        {"docid": "L" * 33_000, "text": "a long docid"},
        {"docid": "n4", "title": "", "text": "x" * 40_000},
        {"docid": "7", "text": "once more"},
        {"docid": 7.0, "text": "and again"},
        {"docid": " ", "text": "no id"},
        {"docid": ["d"], "text": "a list as id"},
        {"docid": "d9", "text": {"a": 1}},
        '{"docid": "d8", "text": "half \\ud800"}',
        {"docid": True, "text": "true"},
    )
    found, dead = corpus_of(file, "jsonl")
    assert [(row["docid"], row["title"]) for row in found] == [
        ("d1", ""),
        ("7", "T"),
        ("007", ""),
        ("a b", ""),
        ("n1", ""),
        ("n2", "1984"),
        ("n3", ""),
        ("t1", "only a title"),
        ("t2", "only a title"),
        ("n4", ""),
        ("true", ""),
    ]
    assert reasons(dead) == [
        (2, "not JSON"),
        (11, "neither title nor text"),
        (12, "neither title nor text"),
        (13, "docid of more than 32,766 bytes"),
        (15, "duplicate docid"),
        (16, "duplicate docid"),
        (17, "no docid"),
        (18, "docid that is no text"),
        (19, "text that is no text"),
        (20, "half a surrogate pair, which is not Unicode"),
    ]
    assert counted({"not JSON": 1, "duplicate docid": 2, "a": 1}) == "2 duplicate docid, 1 a, 1 not JSON"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (7.5, "7.5"),
        ("007", "007"),
        (True, "true"),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        (b"seven", "seven"),
    ],
)
def test_values_are_the_same_text_in_every_format(tmp_path: Path, value: Any, text: str | None) -> None:
    assert as_text(value) == text
    if value is not None and text is not None:
        pq.write_table(pa.table({"docid": [value], "text": ["x"]}), tmp_path / "a.parquet")
        assert corpus_of(tmp_path / "a.parquet", "parquet")[0][0]["docid"] == text
    if text is not None and not isinstance(value, bytes):
        write_lines(tmp_path / "a.jsonl", {"docid": value, "text": "x"})
        assert corpus_of(tmp_path / "a.jsonl", "jsonl")[0][0]["docid"] == text


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("Paris", ["Paris"]),
        (["a", 1, None], ["a", "1"]),
        ('["a", "b"]', ["a", "b"]),
        ("['it\\'s', 'b']", ["it's", "b"]),
        ("[sic]", ["[sic]"]),
        (None, []),
        (7, ["7"]),
    ],
)
def test_lists_of_texts(value: Any, texts: list[str]) -> None:
    assert as_texts(value) == texts


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.sampled_from(["docid", "_id", "title", "text", "x"]), _values), max_size=6))
def test_any_rows_are_passages_or_are_set_aside(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[dict[str, Any]]
) -> None:
    first = {"docid": "first", "text": "so that the columns are there"}
    file = write_lines(tmp_path_factory.mktemp("any") / "a.jsonl", first, *given_rows)
    found, dead = corpus_of(file, "jsonl")
    assert len(found) + len(dead) == 1 + len(given_rows)
    assert len({row["docid"] for row in found}) == len(found)


def test_columns_by_other_names(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"key": 1, "_id": "x", "doc": {"body": "inside"}, "title": "T"})
    found, _ = corpus_of(file, "jsonl", columns={"docid": "key", "text": "doc.body"})
    assert found == [{"docid": "1", "title": "T", "text": "inside"}]
    names = Names(PASSAGES, {"text": "doc.body"})
    assert "doc" in names and "_id" in names and "other" not in names
    with pytest.raises(ValueError, match="`columns` has body; there are docid, title, text"):
        FileCorpus.model_validate({"format": "jsonl", "path": file, "columns": {"body": "text"}})


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_missing_column_is_told_with_the_one_that_may_be_meant(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"docids": ["a"], "text": ["x"]}), path)
    else:
        write_lines(path, {"docids": "a", "text": "x"})
    with pytest.raises(InputError, match=r"no column is docid.*There are docids, text.*mean 'docids'.*docid: docids"):
        corpus_of(path, form)


def test_nothing_that_can_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its first 2 rows can be read: 2 not JSON"):
        corpus_of(write_lines(tmp_path / "a.jsonl", "docid,text", "1,x"), "jsonl")
    with pytest.raises(InputError, match="does not exist"):
        corpus_of(tmp_path / "no.jsonl", "jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"no file named \*\.parquet; it holds nothing"):
        corpus_of(tmp_path / "folder", "parquet")


@pytest.fixture
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "PART_BYTES", 400)
        yield


def test_a_shard_of_long_passages_has_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "SHARD_CHARACTERS", 100)
    lines = [{"docid": str(i), "title": "T", "text": "x" * 29} for i in range(10)]
    source = formats.passages(FileCorpus(format="jsonl", path=write_lines(tmp_path / "a.jsonl", *lines)))
    passages.write_part(tmp_path / "out", 0, source.parts[0], source.names)
    for part, column in (("data", "docid"), ("places", "place")):
        files = sorted((tmp_path / "out" / part).glob("*.parquet"))
        found = [pq.read_table(file)[column].to_pylist() for file in files]
        assert list(map(len, found)) == [4, 4, 2]
    assert [place.rpartition(":")[2] for of_shard in found for place in of_shard] == [str(i) for i in range(1, 11)]


def test_a_part_holds_few_dead_letters_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "SHARD_LETTERS", 10)
    lines = ["{broken" if i % 2 else {"docid": str(i), "text": "x"} for i in range(50)]
    source = formats.passages(FileCorpus(format="jsonl", path=write_lines(tmp_path / "a.jsonl", *lines)))
    passages.write_part(tmp_path / "out", 0, source.parts[0], source.names)
    files = sorted((tmp_path / "out" / "set_aside").glob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [10, 10, 5]
    assert passages._gather_letters(tmp_path / "out") == {"not JSON": 25}
    gathered = pq.read_table(tmp_path / "out" / "dead_letters.parquet")
    assert gathered.schema.equals(records.DEAD_LETTERS)
    assert reasons(gathered.to_pylist()) == [(line, "not JSON") for line in range(2, 51, 2)]


def test_written_in_parallel_it_is_the_same_corpus(ray_cluster: None, tmp_path: Path, small_parts: None) -> None:
    lines: list[Any] = [{"docid": f"d{i}", "text": f"text {i}"} for i in range(200)]
    lines[17], lines[120] = "{broken", {"docid": "d3", "text": "again"}
    lines.append({"docid": "d199", "text": "again, in the last part"})
    file = write_lines(tmp_path / "in.jsonl", *lines)
    config = FileCorpus(format="jsonl", path=file)
    assert len(rows.parts(file, "jsonl")) > 10
    found, dead = corpus_of(file, "jsonl")
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "000099-0000.parquet").write_bytes(b"left by an unfinished run")
    assert write_corpus(out, config, HERE, dict) == {"passages": len(found), "dead": len(dead)}
    assert read_parquet(out / "data").to_pylist() == found
    letters = read_parquet(out / "dead_letters.parquet")
    assert letters.schema == records.DEAD_LETTERS
    assert (
        sorted(reasons(letters.to_pylist()))
        == sorted(reasons(dead))
        == [
            (18, "not JSON"),
            (121, "duplicate docid"),
            (201, "duplicate docid"),
        ]
    )
    assert sorted(path.name for path in out.iterdir()) == ["data", "dead_letters.parquet"]


def test_shards_of_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "SHARD_ROWS", 20)
    write_lines(tmp_path / "in.jsonl.gz", *({"docid": f"d{i % 43}", "text": str(i)} for i in range(45)))
    (part,) = rows.parts(tmp_path / "in.jsonl.gz", "jsonl")
    passages.write_part(tmp_path / "out", 3, part, Names(PASSAGES))
    assert [path.name for path in sorted((tmp_path / "out" / "data").iterdir())] == [
        f"000003-000{i}.parquet" for i in range(3)
    ]
    assert passages.drop_duplicates(tmp_path / "out") == 2
    kept = read_parquet(tmp_path / "out" / "data")
    assert kept["docid"].to_pylist() == [f"d{i}" for i in range(43)]


def test_equal_hashes_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    def constant(values: Any, categorize: bool) -> Any:
        return pandas.Series([0] * len(values)).to_numpy("uint64")

    monkeypatch.setattr(pandas.util, "hash_array", constant)
    write_lines(tmp_path / "in.jsonl", *({"docid": d, "text": "x"} for d in ("a", "b", "a", "c", "b")))
    (part,) = rows.parts(tmp_path / "in.jsonl", "jsonl")
    passages.write_part(tmp_path, 0, part, Names(PASSAGES))
    assert passages.drop_duplicates(tmp_path) == 2
    assert read_parquet(tmp_path / "data")["docid"].to_pylist() == ["a", "b", "c"]


def test_an_error_of_a_part_is_an_input_error(ray_cluster: None, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"docid": "a", "text": "x"}\n' * 500_000)[:-9])
    with pytest.raises(InputError, match="cannot be read as jsonl"):
        write_corpus(tmp_path / "out", FileCorpus(format="jsonl", path=file), HERE, dict)


def test_an_empty_corpus_is_told_with_the_reasons(ray_cluster: None, tmp_path: Path) -> None:
    lines = [{"docid": i, "text": " ", "title": None} for i in range(3)]
    config = FileCorpus(format="jsonl", path=write_lines(tmp_path / "a.jsonl", *lines))
    with pytest.raises(InputError, match=r"no passage is left.*a\.jsonl.*3 neither title nor text"):
        write_corpus(tmp_path / "out", config, HERE, dict)
