"""Corpus and queries from files to the contract; a row that cannot be used goes to the dead letters with file:line."""

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from aqe import records
from aqe.artifact import write_parquet
from aqe.config.data import (
    SPLITS,
    CorpusConfig,
    FileQueries,
    QueriesConfig,
    ReverseDictionary,
    Split,
    SplitsConfig,
    dataset_names,
)
from aqe.corpus import reverse_dictionary
from aqe.errors import InputError

BATCH_ROWS = 10_000
SHARD_ROWS = (
    50_000  # a shard is the unit of work of a Ray task: small enough that two cores share a small corpus evenly
)
_SUFFIXES = {"parquet": (".parquet",), "jsonl": (".jsonl", ".jsonl.gz")}
_MOST_OF_A_ROW = 2_000  # characters of a dead row that are kept
#: Raise it when the readers make anything else of the same input than before: their artifacts are named by it.
VERSION = 3

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape half a character; no UTF-8 can hold it

RawRow = dict[str, Any]
Dead = list[RawRow]  # rows of records.DEAD_LETTERS
_Check = Callable[[RawRow], str | None]  # the reason why a row cannot be used, None for a good one


def _bury(dead: Dead, stage: str, reason: str, row: Any) -> None:
    text = row if isinstance(row, str) else json.dumps(row, default=str)
    letter = {"stage": stage, "reason": reason, "row": text[:_MOST_OF_A_ROW]}
    dead.append({name: value.encode(errors="replace").decode() for name, value in letter.items()})


def files(path: Path, form: Literal["parquet", "jsonl"]) -> list[Path]:
    """The file, or those of the directory with the format's suffix by name. InputError when there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path.absolute()} does not exist. Name a {form} file or a directory of them.")
    files = sorted(p for p in path.iterdir() if p.name.endswith(_SUFFIXES[form]) and not p.name.startswith("."))
    if not files:
        there = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise InputError(f"{path} holds no file named *{' or *'.join(_SUFFIXES[form])}; it holds {there}.")
    return files


def _parquet_rows(file: Path, schema: pa.Schema, optional: RawRow) -> Iterator[tuple[int, RawRow]]:
    """(number from 1, row) in bounded memory. InputError for missing columns or types that cannot be cast."""
    with pq.ParquetFile(file) as source:
        there = [name for name in schema.names if name in source.schema_arrow.names]
        needed = pa.schema([field for field in schema if field.name in there or field.name not in optional])
        # Against all columns, so that the message can name what the file has in place of a missing one.
        records.conform(source.schema_arrow.empty_table(), needed, str(file))
        number = 0
        for batch in source.iter_batches(batch_size=BATCH_ROWS, columns=there):
            for row in records.conform(pa.Table.from_batches([batch]), needed, str(file)).to_pylist():
                number += 1
                yield number, optional | {k: v for k, v in row.items() if v is not None}


def _jsonl_rows(file: Path, optional: RawRow, dead: Dead, stage: str) -> Iterator[tuple[int, RawRow]]:
    """(line from 1, row); lines that are no JSON object are buried. Null counts as absent; blank lines are nothing."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as source:
        for number, line in enumerate(source, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
                _bury(dead, stage, f"{file}:{number} is not JSON: {error}", line.decode(errors="replace"))
                continue
            if isinstance(row, dict):
                yield number, optional | {k: v for k, v in row.items() if v is not None}
            else:
                _bury(dead, stage, f"{file}:{number} is a JSON {type(row).__name__}, not an object", row)


def _good_rows(
    file: Path, form: str, schema: pa.Schema, optional: RawRow, check: _Check, dead: Dead, stage: str
) -> Iterator[RawRow]:
    """Rows of one file that pass `check`; the others are buried. InputError when none has the columns asked for."""
    rows = _parquet_rows(file, schema, optional) if form == "parquet" else _jsonl_rows(file, optional, dead, stage)
    before, fits = len(dead), False
    try:
        for number, row in rows:
            fits = fits or row.keys() >= set(schema.names)
            if reason := check(row):
                _bury(dead, stage, f"{file}:{number} {reason}", row)
            else:
                yield {name: row[name] for name in schema.names}
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as {form} ({error}). Is it complete, and of that format?") from error
    if not fits and len(dead) > before:
        raise InputError(
            f"{file}: none of its {len(dead) - before:,} rows has the columns {', '.join(schema.names)} "
            f"(optional: {', '.join(optional)}). The first: {dead[before]['reason']}."
        )


def _flaw(row: RawRow, schema: pa.Schema, seen: set[str], key: str) -> str | None:
    """What keeps a row out: a column missing, of a wrong type or empty, an id with blanks, an id seen before."""
    for field in schema:
        if field.name not in row:
            return f"has no {field.name}; it has {', '.join(map(str, row)) or 'nothing'}"
        value = row[field.name]
        is_list = pa.types.is_list(field.type)
        values = value if is_list else [value]
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            return f"has a {field.name} that is not {'a list of texts' if is_list else 'text'}: {str(value)[:80]}"
        if any(_SURROGATE.search(v) for v in values):
            return f"has a {field.name} with half a surrogate pair, which is not Unicode text"
    if not row["text"].strip():
        return "has an empty text"
    if row[key].split() != [row[key]]:
        return f"has the {key} {row[key]!r}; TREC files need one without blanks"
    if row[key] in seen:
        return f"has the {key} {row[key]!r} of an earlier row"
    seen.add(row[key])
    return None


def read_corpus(config: CorpusConfig, dead: Dead) -> Iterator[pa.Table]:
    """Batches of at most 10,000 rows of records.CORPUS; a passage without a title has ''. Bad rows go to `dead`.

    Memory holds one batch and the docids (about 100 bytes each). InputError for files that are missing, unreadable or
    of another shape.
    """
    if isinstance(config, ReverseDictionary):
        for part in reverse_dictionary.passages().to_batches(max_chunksize=BATCH_ROWS):
            yield pa.Table.from_batches([part])
        return
    check = partial(_flaw, schema=records.CORPUS, seen=set(), key="docid")
    batch: list[RawRow] = []
    for file in files(config.path, config.format):
        for row in _good_rows(file, config.format, records.CORPUS, {"title": ""}, check, dead, "corpus"):
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                yield records.table(batch, records.CORPUS)
                batch = []
    if batch:
        yield records.table(batch, records.CORPUS)


def read_queries(*sources: QueriesConfig, stage: str = "queries") -> tuple[pa.Table, pa.Table]:
    """(records.QUERIES, records.DEAD_LETTERS). `order`, `skip` and `limit` hold for each file by itself.

    What several paths or sources hold is dealt out in turn, so that the first queries are a fair sample of all.
    InputError for files that are missing, unreadable or of another shape.
    """
    dead: Dead = []
    check = partial(_flaw, schema=records.ASKED, seen=set(), key="qid")
    turns: list[list[RawRow]] = []
    names = dataset_names([path for source in sources if isinstance(source, FileQueries) for path in source.paths])
    for source in sources:
        if isinstance(source, FileQueries):
            turns += [_read_path(path, names[path], source, check, dead, stage) for path in source.paths]
        else:
            turns.append(reverse_dictionary.queries()[source.split].slice(source.skip, source.limit).to_pylist())
    rows = [row for turn in zip_longest(*turns) for row in turn if row is not None]
    return records.table(rows, records.QUERIES), records.table(dead, records.DEAD_LETTERS)


def _read_path(path: Path, dataset: str, config: FileQueries, check: _Check, dead: Dead, stage: str) -> list[RawRow]:
    """Rows of records.QUERIES of one path of a source."""
    absent: RawRow = {"answers": [], "positives": []}
    elsewhere = {_same_question(text) for other in config.without for text in _texts(other, config.format)}
    rows: list[RawRow] = []
    for file in files(path, config.format):
        of_file = list(_good_rows(file, config.format, records.ASKED, absent, check, dead, stage))
        of_file = [row for row in of_file if _same_question(row["text"]) not in elsewhere]
        if config.order == "hash":
            of_file.sort(key=lambda row: hashlib.md5(row["qid"].encode()).hexdigest())
        rows += [{**row, "dataset": dataset} for row in of_file[config.skip :][: config.limit]]
    return rows


def _texts(path: Path, form: Literal["parquet", "jsonl"]) -> Iterator[str]:
    """The questions of a path, whatever else their rows hold."""
    schema = pa.schema([records.ASKED.field("text")])
    for file in files(path, form):
        for row in _good_rows(file, form, schema, {}, partial(_no_text, schema=schema), [], "queries"):
            yield row["text"]


def _no_text(row: RawRow, schema: pa.Schema) -> str | None:
    return None if isinstance(row.get("text"), str) else f"has no {schema.names[0]}"


def write_corpus(out: Path, config: CorpusConfig) -> dict[str, int]:
    """Write out/data/00000.parquet, ... and, if any, out/dead_letters.parquet; return {passages, dead}.

    Starts from nothing: what an unfinished run left in out/data is removed. InputError when no passage remains.
    """
    shutil.rmtree(out / "data", ignore_errors=True)
    dead: Dead = []
    waiting: list[pa.Table] = []
    passages = 0

    def flush() -> None:
        # Numbered in the order of the corpus, which is the order of their names.
        first = passages - sum(table.num_rows for table in waiting)
        write_parquet(pa.concat_tables(waiting), out / "data" / f"{first // SHARD_ROWS:05}.parquet")
        waiting.clear()

    for batch in read_corpus(config, dead):
        waiting.append(batch)
        passages += batch.num_rows
        if passages % SHARD_ROWS == 0:  # batches are full but for the last, and fill a shard exactly
            flush()
    if waiting:
        flush()
    _write_dead(out, records.table(dead, records.DEAD_LETTERS))
    if not passages:
        raise InputError(f"no passage in the corpus {config}: {dead[0]['reason'] if dead else 'it is empty'}.")
    return {"passages": passages, "dead": len(dead)}


def _same_question(text: str) -> str:
    """What two texts of the same question share: case, blanks and the mark at the end do not count."""
    return " ".join(text.casefold().split()).rstrip(" ?.!")


def _first_dataset(splits: SplitsConfig, split: Split, queries: pa.Table) -> dict[str, str]:
    """question -> the first dataset of a split, in the order of the configuration, that asks it."""
    order = splits.datasets(split)
    first: dict[str, str] = {}
    for text, dataset in zip(queries["text"].to_pylist(), queries["dataset"].to_pylist(), strict=True):
        question = _same_question(text)
        before = first.setdefault(question, dataset)
        if dataset != before and order.index(dataset) < order.index(before):
            first[question] = dataset
    return first


def write_queries(out: Path, splits: SplitsConfig) -> dict[str, int]:
    """Write out/train.parquet, dev.parquet, test.parquet; return the rows of each, `shared` and `dead`.

    A query whose qid or question is also in a later split (train < dev < test) is taken out of the earlier one and
    buried: nothing that is reported on was trained on. So is a question that another dataset of its split asks before:
    pools of datasets hold it once. InputError when a split is empty.
    """
    taken: set[tuple[str, str]] = set()
    letters: list[pa.Table] = []
    stats = {"shared": 0}
    for split in reversed(SPLITS):
        queries, dead = read_queries(*splits.sources(split), stage=f"queries.{split}")
        kept: list[RawRow] = []
        shared: Dead = []
        marks: set[tuple[str, str]] = set()
        first = _first_dataset(splits, split, queries)
        for row in queries.to_pylist():
            question = _same_question(row["text"])
            mine = {("qid", row["qid"]), ("text", question)}
            if both := sorted(name for name, _ in mine & taken):
                why = f"{row['qid']}: its {' and '.join(both)} is also in a split that {split} is kept apart from"
                _bury(shared, f"queries.{split}", why, row)
            elif first[question] != row["dataset"]:
                _bury(shared, f"queries.{split}", f"{row['qid']}: {first[question]} asks the same", row)
            else:
                kept.append(row)
                marks |= mine
        if not kept:
            raise InputError(
                f"no query is left for {split}: {queries.num_rows:,} read, {len(shared):,} also in another split, "
                f"{dead.num_rows:,} unusable{': ' + dead['reason'][0].as_py() if dead.num_rows else ''}."
            )
        taken |= marks
        write_parquet(records.table(kept, records.QUERIES), out / f"{split}.parquet")
        letters += [dead, records.table(shared, records.DEAD_LETTERS)]
        stats |= {split: len(kept), "shared": stats["shared"] + len(shared)}
    dead = pa.concat_tables(letters)
    _write_dead(out, dead)
    return stats | {"dead": dead.num_rows}


def _write_dead(out: Path, dead: pa.Table) -> None:
    """Write out/dead_letters.parquet, or remove that of an earlier try when there is nothing to bury."""
    if dead.num_rows:
        write_parquet(dead, out / "dead_letters.parquet")
    else:
        (out / "dead_letters.parquet").unlink(missing_ok=True)
