"""Rows of files: any line end, any cut into parts, compressed or not; what is no row is a flaw with its line."""

import bz2
import csv
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe.corpus import rows
from aqe.corpus.rows import Flaw, Form, Part, parts
from aqe.errors import InputError

EVERYTHING = type("Everything", (), {"__contains__": lambda self, name: True})()


def read(found: list[Part]) -> list[tuple[int, Any]]:
    """(line, row or the reason why there is none)."""
    return [
        (int(place.rpartition(":")[2]), row.reason if isinstance(row, Flaw) else row)
        for part in found
        for place, row in part.rows(EVERYTHING)
    ]


def of(file: Path, form: Form, **how: Any) -> list[tuple[int, Any]]:
    return read(parts(file, form, **how))


_line = st.text(st.characters(exclude_characters="\r\n\x1c\x1d\x1e\x85\u2028\u2029", codec="utf-8"), max_size=6)
_end = st.sampled_from(["\n", "\r\n", "\r"])


@given(st.lists(st.tuples(_line, _end), max_size=12), st.integers(1, 9), st.integers(1, 7), st.booleans())
def test_any_cut_gives_the_same_lines_with_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]], size: int, block: int, bom: bool
) -> None:
    text = "".join(json.dumps({"t": line}) + end if line else end for line, end in lines)
    file = tmp_path_factory.mktemp("cut") / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    # Of CR and LF in a row, universal newlines make one end.
    plain = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    wanted = [(number, json.loads(line)) for number, line in enumerate(plain, 1) if line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "PART_BYTES", size)
        patch.setattr(rows, "BLOCK", block)
        found = parts(file, "jsonl")
        assert read(found) == wanted
        assert read(rows.numbered(found * 2)) == wanted * 2


def test_a_file_of_many_parts_is_read_once_to_number_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PART_BYTES", 100)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 200)
    found = rows.numbered(parts(tmp_path / "a.jsonl", "jsonl"))
    assert len(found) == 18
    counted: list[tuple[int, int]] = []

    def ends(stream: Any, start: int, stop: int) -> int:
        counted.append((start, stop))
        return 0

    monkeypatch.setattr(rows, "_ends", ends)
    assert [number for number, _ in read(found)] == list(range(1, 201)) and not counted
    rows.numbered(parts(tmp_path / "a.jsonl", "jsonl"))
    assert sum(stop - start for start, stop in counted) < 1_800


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.zst"])
def test_lines_that_are_no_objects_are_flaws(tmp_path: Path, name: str) -> None:
    data = b'{"a": 1}\n{not json\n\n[1, 2]\n{"a": "\xff"}\r\n{"a": 3}'
    write: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".zst": lambda text: pa.compress(text, "zstd", asbytes=True),
    }
    (tmp_path / name).write_bytes(write.get(Path(name).suffix, bytes)(data))
    flaws = [(2, "not JSON"), (4, "not a JSON object"), (5, "not UTF-8")]
    assert of(tmp_path / name, "jsonl") == [(1, {"a": 1}), *flaws, (6, {"a": 3})]


def test_csv_with_quotes_breaks_and_a_header(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(
        b'\xef\xbb\xbfid,text\r\n1,"one, ""two""\r\nthree"\r\n007,plain\r\n\r\n2,too,many\r\n3,"a"b\r\n4,\xff\r\n5,five\r\n'
    )
    assert of(file, "csv") == [
        (2, {"id": "1", "text": 'one, "two"\r\nthree'}),
        (4, {"id": "007", "text": "plain"}),
        (6, "not as many fields as columns"),
        (7, "quotes that do not fit"),
        (8, "not UTF-8"),
        (9, {"id": "5", "text": "five"}),
    ]


def test_what_a_quote_takes_in_that_nobody_closes_is_set_aside_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('id,text\n1,"open\n2,two\n\n3,three\n4,"four"\n5,five\n6,"open\n7,seven\n')
    flaw = "quotes that do not fit"
    five = (7, {"id": "5", "text": "five"})
    assert of(file, "csv") == [(2, flaw), (3, flaw), (5, flaw), (6, flaw), five, (8, flaw), (9, flaw)]
    (part,) = parts(file, "csv")
    assert next(part.rows(EVERYTHING)) == (f"{file}:2", Flaw(flaw, '1,"open'))
    limit = csv.field_size_limit(100)
    try:
        file.write_text('id,text\n1,"open\n' + "2,two\n" * 100)
        found = [row for _, row in of(file, "csv")]
    finally:
        csv.field_size_limit(limit)
    assert 0 < found.count(flaw) < 30 and found.count(flaw) + found.count({"id": "2", "text": "two"}) == 101


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tsv_has_no_quotes_unless_they_are_asked_for(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PART_BYTES", 8)
    file = tmp_path / "a.tsv"
    file.write_bytes(end.join(["id\ttext", '1\t"He" said', "2\ttwo", '3\t"three"', ""]).encode())
    texts = ['"He" said', "two", '"three"']
    assert of(file, "tsv") == [(i + 2, {"id": str(i + 1), "text": text}) for i, text in enumerate(texts)]
    assert of(file, "tsv", names=("a", "b"))[0] == (1, {"a": "id", "b": "text"})
    assert of(file, "tsv", quoted=True)[2] == (4, {"id": "3", "text": "three"})


def test_a_field_may_be_longer_than_pythons_csv_takes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n1,{'x' * 300_000}\n")
    ((_, row),) = of(tmp_path / "a.csv", "csv")
    assert len(row["text"]) == 300_000


def test_parquet_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PART_BYTES", 100)
    data = pa.table({"docid": range(50), "text": [f"text {i}" for i in range(50)], "other": ["x" * 9] * 50})
    pq.write_table(data, tmp_path / "a.parquet", row_group_size=7)
    found = parts(tmp_path / "a.parquet", "parquet")
    assert len(found) > 3
    assert read(found) == [(i + 1, row) for i, row in enumerate(data.to_pylist())]
    assert next(found[0].rows(("text",)))[1] == {"text": "text 0"}
    pq.write_table(data.slice(0, 0), tmp_path / "none.parquet")
    assert of(tmp_path / "none.parquet", "parquet") == []


def test_bytes_that_are_no_text_in_a_column_of_text(tmp_path: Path) -> None:
    binary = pa.array([b"one", b"\xff", b"three"])
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"docid": ["1", "2", "3"], "text": text}), tmp_path / "a.parquet")
    (part,) = parts(tmp_path / "a.parquet", "parquet")
    assert read([part]) == [(1, {"docid": "1", "text": "one"}), (2, "not UTF-8"), (3, {"docid": "3", "text": "three"})]
    assert list(part.rows(EVERYTHING))[1][1] == Flaw("not UTF-8", {"docid": "2", "text": "bytes that are no text"})
    assert len(list(part.rows(("docid",)))) == 3


def test_a_member_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set/corpus.jsonl", '{"a": 1}\n{"a": 2}\n')
    part = Part(tmp_path / "a.zip", "jsonl", member="set/corpus.jsonl")
    assert read([part]) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"a": 1}'.encode("utf-16"), "is UTF-16.*iconv"),
        (b' [{"a": 1}]', r"JSON array.*jq -c"),
        (b"PAR1...", "holds Parquet data"),
        (gzip.compress(b"x"), "holds gzip data"),
        (b"PK\x03\x04..", "holds zip data"),
    ],
)
def test_what_is_no_such_file_is_said_at_once(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=message):
        parts(tmp_path / "a.jsonl", "jsonl")


@pytest.mark.parametrize(
    ("name", "data", "form"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"docid": "a", "text": "x"}\n' * 9)[:-9], "jsonl"),
        ("no.jsonl.gz", b"text", "jsonl"),
        ("bad.jsonl.gz", gzip.compress(b"")[:10] + b"\xff" * 40, "jsonl"),
        ("no.jsonl.zst", b"text", "jsonl"),
        ("a.parquet", b"PAR1 no", "parquet"),
    ],
)
def test_damaged_files_are_input_errors(tmp_path: Path, name: str, data: bytes, form: Form) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read.*Is it complete"):
        of(tmp_path / name, form)


def test_a_line_without_end_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", 3_000_000)
    (tmp_path / "a.jsonl").write_bytes(b"{" + b"x" * 6_000_000)
    with pytest.raises(InputError, match="line of more than 3,000,000 bytes"):
        of(tmp_path / "a.jsonl", "jsonl")


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "tsv"]))
def test_any_bytes_give_rows_flaws_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, form: Form
) -> None:
    file = tmp_path_factory.mktemp("junk") / f"a.{form}"
    file.write_bytes(data)
    try:
        for _, row in of(file, form):
            assert isinstance(row, dict | str)
    except InputError:
        pass
