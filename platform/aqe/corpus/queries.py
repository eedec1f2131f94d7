"""Queries from whatever format to their contract, with their judgements, each in one split."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aqe import records
from aqe.artifact import write_parquet
from aqe.config.sources import (
    SPLITS,
    BeirQueries,
    FileQueries,
    FromIrDatasets,
    QuerySource,
    ReverseDictionaryQueries,
    Split,
)
from aqe.config.splits import SplitsConfig, dataset_names, origins
from aqe.corpus import contract, formats
from aqe.corpus.formats import Source
from aqe.corpus.rows import Flaw, RawRow, numbered
from aqe.corpus.split import deal, same_question
from aqe.errors import DataError

#: Raise it when the same files give other queries than before: their artifacts are named by it.
VERSION = 5

Dead = list[dict[str, str]]  # rows of records.DEAD_LETTERS


def read_queries(
    *sources: QuerySource,
    stage: str = "queries",
    called: Mapping[Path | str, str] | None = None,
    read: Counter[str] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """(records.QUERIES, records.DEAD_LETTERS). `order`, `skip` and `limit` hold for each file by itself.

    What several paths or sources hold is dealt out in turn, so that the first queries are a fair sample of all. Of two
    that are taken the first has the qid. `called`: what begins the qids of files that have none, by origin; by default
    what the datasets are called. `read` is told the good `judgements` of files of their own. DataError for files that
    are missing, unreadable or without a column that is needed.
    """
    dead: Dead = []
    taken: set[str] = set()
    turns: list[list[RawRow]] = []
    names = dataset_names(origin for source in sources for origin in origins(source))
    for source in sources:
        judged = _judgements(source, dead, stage)
        if read is not None:
            read["judgements"] += sum(map(len, (judged or {}).values()))
        for origin in origins(source):
            turn: list[RawRow] = []
            for path in _files(source, origin):
                rows = list(_good(formats.queries(source, path, (called or names)[origin]), dead, stage))
                own = _first_of(_taken(rows, source, judged), taken, dead, stage)
                turn += [{**row, "dataset": names[origin]} for row in own]
            turns.append(turn)
    dealt = [row for turn in zip_longest(*turns) for row in turn if row is not None]
    return records.table(dealt, records.QUERIES), records.table(dead, records.DEAD_LETTERS)


def _files(source: QuerySource, origin: Path | str) -> Sequence[Path | None]:
    """The files of a path; [None] where a source has none of its own."""
    if not isinstance(origin, Path):
        return [None]
    return formats.files(origin, source.format) if isinstance(source, FileQueries) else [origin]


def _good(source: Source, dead: Dead, stage: str) -> Iterator[RawRow]:
    """The rows of a source that are queries, each qid once, with their `place`; the others are set aside."""
    contract.probe(source, "queries")
    seen: set[str] = set()
    for part in numbered(source.parts):
        for place, found in part.rows(source.names):
            row = contract.query(found, source.names) if isinstance(found, dict) else found
            if isinstance(row, dict) and row["qid"] in seen:
                row = Flaw("duplicate qid", row)
            if isinstance(row, Flaw):
                dead.append(contract.letter(stage, place, row))
            else:
                seen.add(row["qid"])
                yield {**row, "place": place}


def _first_of(rows: list[RawRow], taken: set[str], dead: Dead, stage: str) -> list[RawRow]:
    """The rows whose qid nobody has `taken` before, and takes them; the others are set aside.

    Files may hold the same queries, and their sources take others of them: BEIR's splits share a file.
    """
    kept = []
    for row in rows:
        if row["qid"] in taken:
            again = {name: row[name] for name in ("qid", "text", "answers", "positives")}
            dead.append(contract.letter(stage, row["place"], Flaw("duplicate qid", again)))
        else:
            taken.add(row["qid"])
            kept.append(row)
    return kept


def _judgements(config: QuerySource, dead: Dead, stage: str) -> dict[str, dict[str, int]] | None:
    """qid -> docid -> relevance, of the judgements that a source has of its own; None where it has none."""
    source = formats.qrels(config)
    if source is None:
        return None
    contract.probe(source, "qrels")
    judged: dict[str, dict[str, int]] = {}
    for part in numbered(source.parts):
        for place, found in part.rows(source.names):
            row = contract.judgement(found, source.names) if isinstance(found, dict) else found
            if isinstance(row, dict) and row["docid"] in judged.get(row["qid"], ()):
                row = Flaw("a passage judged twice for a query", row)
            if isinstance(row, Flaw):
                dead.append(contract.letter(f"{stage}.qrels", place, row))
            else:
                judged.setdefault(row["qid"], {})[row["docid"]] = row["relevance"]
    return judged


def _taken(rows: list[RawRow], config: QuerySource, judged: dict[str, dict[str, int]] | None) -> list[RawRow]:
    """Those of a path that its source takes, as records.QUERIES has them but for their dataset."""
    if isinstance(config, ReverseDictionaryQueries):
        rows = rows[config.skip :][: config.limit]
        return [{**row, "relevance": [1] * len(row["positives"]), "excluded": [], "match": "dpr"} for row in rows]
    if judged is not None and isinstance(config, BeirQueries | FromIrDatasets):
        # The file has those of all splits; the judgements say which are of this one.
        rows = [row for row in rows if row["qid"] in judged]
    if isinstance(config, FileQueries) and config.without:
        elsewhere = {same_question(text) for text in _texts(config)}
        rows = [row for row in rows if same_question(row["text"]) not in elsewhere]
    if config.order == "hash":
        rows.sort(key=lambda row: hashlib.md5(row["qid"].encode()).hexdigest())
    taken = []
    for row in rows[config.skip :][: config.limit]:
        graded = dict.fromkeys(row["positives"], 1) if judged is None else judged.get(row["qid"], {})
        excluded = [row["qid"]] if config.exclude_self else []
        graded = {docid: grade for docid, grade in graded.items() if docid not in excluded}
        taken.append(
            {
                **row,
                # Judgements of their own decide alone: nobody looks for the answers of a query that they leave out.
                "answers": row["answers"] if judged is None or graded else [],
                "positives": list(graded),
                "relevance": list(graded.values()),
                "excluded": excluded,
                "match": config.answers.match,
            }
        )
    return taken


def count(config: QuerySource) -> int:
    """Queries that a source may give: its rows, as far as `skip` and `limit` let them. Its files are read once."""
    total = 0
    for origin in origins(config):
        for path in _files(config, origin):
            left = max(0, _rows(config, path) - config.skip)
            total += left if config.limit is None else min(left, config.limit)
    return total


def _rows(config: QuerySource, path: Path | None) -> int:
    if isinstance(config, BeirQueries | FromIrDatasets):
        # Those of its split.
        return len(_judgements(config, [], "") or ())
    if path is not None and path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    parts = numbered(formats.queries(config, path).parts)
    return sum(isinstance(row, dict) for part in parts for _, row in part.rows(()))


def _texts(config: FileQueries) -> Iterator[str]:
    """The questions that a source leaves out, whatever else their rows hold."""
    for path in config.without:
        source = formats.queries(config, path)
        for part in source.parts:
            for _, found in part.rows(source.names):
                text = source.names.find(found).get("text") if isinstance(found, dict) else None
                if isinstance(text, str):
                    yield text


def write_queries(out: Path, splits: SplitsConfig) -> dict[str, int]:
    """Write out/train.parquet, dev.parquet, test.parquet; return the rows of each, `shared`, `dead` and `judgements`,
    the good rows of files of judgements.

    A query whose qid or question is also in a later split (train < dev < test) is taken out of the earlier one and set
    aside: nothing that is reported on was trained on. So is a question that another dataset of its split asks before:
    pools of datasets hold it once. DataError when a split is empty.
    """
    counts = Counter[str]()
    dealt = splits.all is not None
    read = _dealt(splits, counts) if dealt else {split: _read(splits, split, counts) for split in SPLITS}
    taken: dict[tuple[str, str], Split] = {}
    letters: list[pa.Table] = []
    stats = {"shared": 0}
    for split in reversed(SPLITS):
        queries, dead = read[split]
        kept, shared = _apart(queries, split, splits.datasets(split), taken)
        if not kept:
            unusable = contract.counted(Counter(dead["reason"].to_pylist()))
            raise DataError(
                f"queries.{split}: no query is left of {queries.num_rows:,}; "
                f"{contract.counted(Counter(one['reason'] for one in shared)) or 'none was read'}"
                f"{f'; set aside before: {unusable}' if unusable else ''}."
            )
        write_parquet(records.table(kept, records.QUERIES), out / f"{split}.parquet")
        letters += [dead, records.table(shared, records.DEAD_LETTERS)]
        stats |= {split: len(kept), "shared": stats["shared"] + len(shared)}
    dead = pa.concat_tables(letters)
    (out / "dead_letters.parquet").unlink(missing_ok=True)
    if dead.num_rows:
        write_parquet(dead, out / "dead_letters.parquet")
    return stats | {"dead": dead.num_rows, "judgements": counts["judgements"]}


def _read(splits: SplitsConfig, split: Split, counts: Counter[str]) -> tuple[pa.Table, pa.Table]:
    # Files of several splits may have the same name, and their queries must not have the same qids.
    called = dataset_names(origin for one in SPLITS for source in splits.sources(one) for origin in origins(source))
    return read_queries(*splits.sources(split), stage=f"queries.{split}", called=called, read=counts)


def _dealt(splits: SplitsConfig, counts: Counter[str]) -> dict[Split, tuple[pa.Table, pa.Table]]:
    """The queries of all by the split that the rule gives them; what was set aside belongs to train."""
    assert splits.split is not None
    queries, dead = read_queries(*splits.sources("train"), stage="queries.all", read=counts)
    of = pa.array(deal(queries["text"].to_pylist(), splits.split), pa.string())
    none = dead.slice(0, 0)
    return {split: (queries.filter(pc.equal(of, split)), dead if split == "train" else none) for split in SPLITS}


def _apart(
    queries: pa.Table, split: Split, order: Sequence[str], taken: dict[tuple[str, str], Split]
) -> tuple[list[RawRow], Dead]:
    """(those that are of this split alone, the others as dead letters); adds them to what is `taken`."""
    kept: list[RawRow] = []
    shared: Dead = []
    marks: dict[tuple[str, str], Split] = {}
    first = _first_dataset(order, queries)
    for row in queries.to_pylist():
        question = same_question(row["text"])
        mine = [("qid", row["qid"]), ("text", question)]
        if elsewhere := [taken[mark] for mark in mine if mark in taken]:
            shared.append(contract.letter(f"queries.{split}", row["qid"], Flaw(f"stands in {elsewhere[0]} too", row)))
        elif first[question] != row["dataset"]:
            shared.append(
                contract.letter(f"queries.{split}", row["qid"], Flaw(f"{first[question]} asks the same", row))
            )
        else:
            kept.append(row)
            marks |= dict.fromkeys(mine, split)
    taken |= marks
    return kept, shared


def _first_dataset(order: Sequence[str], queries: pa.Table) -> dict[str, str]:
    """question -> the first dataset, in this order, that asks it."""
    first: dict[str, str] = {}
    for text, dataset in zip(queries["text"].to_pylist(), queries["dataset"].to_pylist(), strict=True):
        question = same_question(text)
        before = first.setdefault(question, dataset)
        if dataset != before and order.index(dataset) < order.index(before):
            first[question] = dataset
    return first
