"""Rows of files: JSON lines, CSV, TSV or Parquet, plain or compressed, alone or in a zip, in parts read each by itself.

A part knows its bytes (of Parquet its row groups) and nothing of the other parts, so that a file of any size is read by
many workers in bounded memory. What is compressed, and CSV with quotes, where a line break may stand inside a field, is
one part. Lines end in LF, CRLF or CR, as Python's universal newlines have it; a byte order mark is no part of the text.
"""

import bz2
import csv
import gzip
import json
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from aqe.errors import DataError

Form = Literal["parquet", "jsonl", "csv", "tsv"]
RawRow = dict[str, Any]

#: Bytes of a part. Its rows are held by one worker until they are written.
PART_BYTES = 32_000_000
#: Rows of Parquet that are turned to Python at once.
BATCH_ROWS = 10_000
#: A line of more bytes is no row of a corpus; reading it would take memory without end.
LONGEST_LINE = 256_000_000
#: Characters of a field in quotes. One that has more was never closed.
LONGEST_FIELD = 32_000_000
BLOCK = 1 << 20
COMPRESSED = (".gz", ".bz2", ".zst")
DELIMITER = {"csv": ",", "tsv": "\t"}

BOM = b"\xef\xbb\xbf"
OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
#: First bytes of what is no text -> what it is.
MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}

# Python's own, 131,072, is less than a long passage.
csv.field_size_limit(LONGEST_FIELD)


@dataclass(frozen=True)
class Flaw:
    """What cannot be a row: why, in words that are the same for all of its kind, and what there is of it."""

    reason: str
    row: Any


@dataclass(frozen=True)
class Part:
    """A stretch of a file: bytes `start` to `stop` of a text, row groups of Parquet; None is the end."""

    file: Path
    form: Form
    start: int = 0
    stop: int | None = None
    member: str | None = None
    """Name inside the file, which is a zip then."""
    names: tuple[str, ...] | None = None
    """Columns of CSV and TSV, in order; None where the first line names them."""
    quoted: bool = False
    """Fields of CSV and TSV may stand in double quotes."""
    line: int | None = None
    """Number of the first line that begins here, where it is known: see `numbered`."""

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.file) if self.member is None else f"{self.file}:{self.member}"

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row) in order; the place is `file:line` or `file:row`, both from 1.

        Of Parquet only the columns `wanted` are read. A line that is no row comes as a Flaw; blank lines are nothing.
        DataError for a file that is damaged, or not of its form at all.
        """
        with self.told():
            for number, row in self._numbered(wanted):
                yield f"{self.where}:{number}", row

    def lines(self) -> Iterator[tuple[str, "str | Flaw"]]:
        """(place, line without its end) in order; blank lines are nothing. DataError as in `rows`."""
        with self.told(), self.open() as stream:
            for number, line in self._lines(stream):
                if line.strip():
                    try:
                        text: str | Flaw = line.rstrip(b"\r\n").decode()
                    except UnicodeDecodeError:
                        text = Flaw("not UTF-8", line.decode(errors="replace"))
                    yield f"{self.where}:{number}", text

    @contextmanager
    def told(self, form: str | None = None) -> Iterator[None]:
        """DataError in place of what goes wrong while its bytes are read, as `form` where that is another one."""
        try:
            yield
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
            raise DataError(
                f"{self.where} cannot be read as {form or self.form} ({error}). Is it complete, and of that format?"
            ) from error

    def _numbered(self, wanted: Container[str]) -> Iterator[tuple[int, RawRow | Flaw]]:
        if self.form == "parquet":
            yield from self._parquet(wanted)
            return
        with self.open() as stream:
            lines = self._lines(stream)
            if self.form == "jsonl":
                yield from _objects(lines)
            else:
                yield from self._table(lines)

    def _parquet(self, wanted: Container[str]) -> Iterator[tuple[int, RawRow | Flaw]]:
        with pq.ParquetFile(self.file) as source:
            groups = range(self.start, source.num_row_groups if self.stop is None else self.stop)
            number = sum(source.metadata.row_group(i).num_rows for i in range(self.start))
            columns = [name for name in source.schema_arrow.names if name in wanted]
            for batch in source.iter_batches(batch_size=BATCH_ROWS, row_groups=list(groups), columns=columns):
                for row in _of_batch(batch):
                    number += 1
                    yield number, row

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The text, without its compression."""
        if self.member is not None:
            with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as inside:
                yield inside
        elif self.file.suffix == ".gz":
            with gzip.open(self.file) as unpacked:
                yield cast(IO[bytes], unpacked)
        elif self.file.suffix == ".bz2":
            with bz2.open(self.file) as stream:
                yield stream
        elif self.file.suffix == ".zst":
            with pa.CompressedInputStream(pa.OSFile(str(self.file)), "zstd") as stream:
                yield stream
        else:
            with self.file.open("rb") as stream:
                yield stream

    def _lines(self, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """(number from 1, line with its end) of the lines that begin in this part."""
        number, at = 1, self.start
        if at:
            number = _ends(stream, 0, at - 1) + 2 if self.line is None else self.line
            # From the byte before: what comes first then is the rest of a line that another part has, or its end.
            stream.seek(at - 1)
        lines = split_lines(stream, str(self.file))
        if at:
            at += len(next(lines, b"")) - 1
        for line in lines:
            if self.stop is not None and at >= self.stop:
                return
            yield number, line.removeprefix(BOM) if at == 0 else line
            at += len(line)
            number += 1

    def _table(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, RawRow | Flaw]]:
        rows = _quoted(lines, DELIMITER[self.form]) if self.quoted else _plain(lines, DELIMITER[self.form])
        names = self.names
        for number, fields in rows:
            if isinstance(fields, Flaw):
                yield number, fields
            elif names is None:
                names = tuple(name.strip() for name in fields)
            elif len(fields) != len(names):
                yield number, Flaw("not as many fields as columns", fields)
            else:
                yield number, dict(zip(names, fields, strict=True))


def parts(file: Path, form: Form, names: tuple[str, ...] | None = None, quoted: bool | None = None) -> list[Part]:
    """The parts of a file in order. DataError where it is not what its form says, as far as its beginning tells.

    `quoted`: by default for CSV, not for TSV.
    """
    if form == "parquet":
        return _parquet_parts(file)
    is_quoted = form == "csv" if quoted is None else quoted
    whole = Part(file, form, names=names, quoted=is_quoted and form != "jsonl")
    check_text(whole)
    if form != "jsonl" and names is None:
        whole = _with_header(whole)
    if whole.quoted or file.suffix in COMPRESSED:
        return [whole]
    size = file.stat().st_size
    bounds = [*range(whole.start, size, PART_BYTES), size]
    return [replace(whole, start=start, stop=stop) for start, stop in pairwise(bounds)] or [whole]


def _parquet_parts(file: Path) -> list[Part]:
    try:
        about = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as parquet ({error}). Is it complete, and of that format?") from error
    sizes = accumulate((about.row_group(i).total_byte_size for i in range(about.num_row_groups)), initial=0)
    starts, begun = [], -PART_BYTES
    for group, before in enumerate(sizes):
        if before - begun >= PART_BYTES and group < about.num_row_groups:
            starts.append(group)
            begun = before
    bounds = [*starts, about.num_row_groups]
    return [Part(file, "parquet", start, stop) for start, stop in pairwise(bounds)]


def _with_header(part: Part) -> Part:
    """The part after the line that names its columns, which it knows then. Quoted, it reads that line itself."""
    if part.quoted or part.file.suffix in COMPRESSED:
        return part
    with part.open() as stream:
        at = 0
        for line in split_lines(stream, str(part.file)):
            at += len(line)
            for _, names in _plain([(1, line.removeprefix(BOM))], DELIMITER[part.form]):
                if isinstance(names, Flaw):
                    raise DataError(f"{part.file}: its first line is {names.reason}; it must name the columns.")
                return replace(part, start=at, names=tuple(name.strip() for name in names))
    return part


def check_text(part: Part) -> None:
    """DataError where the first bytes say that it is no text of this form: UTF-16, Parquet, compressed, an array."""
    try:
        with part.open() as stream:
            head = stream.read(4096)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{part.file} cannot be read ({error}). Is it complete, and what its name says?") from error
    for mark, encoding in OTHER_MARKS.items():
        if head.startswith(mark):
            raise DataError(f"{part.file} is {encoding}. Write it as UTF-8: iconv -f {encoding} -t UTF-8.")
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            raise DataError(
                f"{part.file} holds {kind} data, not {part.form} text. Correct its format or the end of its name."
            )
    if part.form == "jsonl" and head.removeprefix(BOM).lstrip().startswith(b"["):
        raise DataError(
            f"{part.file} is a JSON array, not one row per line. Convert it: jq -c '.[]' {part.file.name} > rows.jsonl"
        )


def split_lines(stream: IO[bytes], where: str) -> Iterator[bytes]:
    """Lines of what is left of a stream, with their ends. DataError for one that is longer than LONGEST_LINE."""
    rest: list[bytes] = []
    held = 0
    while block := stream.read(BLOCK):
        if rest and rest[-1].endswith(b"\r"):
            # It may be half of a CRLF.
            block = rest.pop() + block
        lines = block.splitlines(keepends=True)
        last = b"" if block.endswith(b"\n") else lines.pop()
        if lines:
            yield b"".join([*rest, lines[0]])
            yield from lines[1:]
            rest, held = [], 0
        if last:
            rest.append(last)
            held += len(last)
        if held > LONGEST_LINE:
            raise DataError(f"{where} has a line of more than {LONGEST_LINE:,} bytes. Is it of that format?")
    yield from b"".join(rest).splitlines(keepends=True)


def numbered(found: Sequence[Any]) -> list[Any]:
    """The same parts, those of texts with the numbers of their first lines.

    A file is read once for all of its parts. A part that has to find its number itself reads all that lies before it.
    """
    made = []
    known: dict[Path, tuple[int, int]] = {}
    for part in found:
        if isinstance(part, Part) and part.form != "parquet" and part.start and part.line is None:
            at, ends = known.get(part.file, (0, 0))
            if at >= part.start:  # The file is named twice.
                at, ends = 0, 0
            with part.told(), part.open() as stream:
                ends += _ends(stream, at, part.start - 1)
            known[part.file] = part.start - 1, ends
            part = replace(part, line=ends + 2)
        made.append(part)
    return made


def _ends(stream: IO[bytes], start: int, stop: int) -> int:
    """Ends of lines in bytes `start` to `stop`. Of CR and LF in a row the LF is the end."""
    stream.seek(start)
    ends, left, last = 0, stop - start, b""
    while left > 0 and (block := stream.read(min(BLOCK, left))):
        left -= len(block)
        ends += block.count(b"\n")
        if b"\r" in block:
            ends += block.count(b"\r") - block.count(b"\r\n")
        ends -= last == b"\r" and block.startswith(b"\n")
        last = block[-1:]
    return ends - (last == b"\r" and stream.read(1) == b"\n")


def _of_batch(batch: pa.RecordBatch) -> Iterator[RawRow | Flaw]:
    """Rows of Parquet. Some writers put bytes that are no text into a column of text."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            one = batch.slice(i, 1)
            try:
                yield one.to_pylist()[0]
            except UnicodeDecodeError:
                yield Flaw("not UTF-8", {name: _shown(one[name]) for name in one.schema.names})


def _shown(value: pa.Array) -> Any:
    try:
        return value.to_pylist()[0]
    except UnicodeDecodeError:
        return "bytes that are no text"


def _objects(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, RawRow | Flaw]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError:
            yield number, Flaw("not UTF-8", line.decode(errors="replace"))
        except (ValueError, RecursionError):
            yield number, Flaw("not JSON", line.decode(errors="replace"))
        else:
            yield number, row if isinstance(row, dict) else Flaw("not a JSON object", row)


def _decoded(line: bytes) -> str:
    return line.decode(errors="surrogateescape")


def _fields(fields: list[str]) -> "list[str] | Flaw":
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return Flaw("not UTF-8", [field.encode(errors="replace").decode() for field in fields])
    return fields


def _plain(lines: Iterable[tuple[int, bytes]], delimiter: str) -> Iterator[tuple[int, list[str] | Flaw]]:
    for number, line in lines:
        text = _decoded(line.rstrip(b"\r\n"))
        if text.strip():
            yield number, _fields(text.split(delimiter))


def _quoted(lines: Iterable[tuple[int, bytes]], delimiter: str) -> Iterator[tuple[int, list[str] | Flaw]]:
    """Numbers are those of the line where a row begins. Where quotes do not fit, each line that they took in is a flaw:
    a quote that nobody closes takes in all rows after it.
    """
    taken: list[tuple[int, str]] = []

    def texts() -> Iterator[str]:
        for number, line in lines:
            taken.append((number, _decoded(line)))
            yield taken[-1][1]

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            for number, line in taken:
                if line.strip():
                    yield number, Flaw("quotes that do not fit", line.rstrip("\r\n"))
            continue
        if any(field.strip() for field in fields):
            yield taken[0][0], _fields(fields)
