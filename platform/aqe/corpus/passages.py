"""A corpus from whatever format to its contract, in parallel, in bounded memory, each docid once.

The parts of a source are read by tasks of Ray Data; each writes shards of its passages and the rows that it set aside.
Then docids are compared over all shards, by their hashes: eight bytes a passage.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aqe import records
from aqe.artifact import read_parquet, write_parquet
from aqe.config.sources import AnseriniCorpus, CorpusConfig
from aqe.corpus import contract, formats
from aqe.corpus.columns import Names
from aqe.corpus.formats import Part, Source
from aqe.corpus.rows import Flaw, RawRow, numbered
from aqe.dead_letters import reasons_of
from aqe.errors import KINDS, AqeError, DataError
from aqe.storage import put

if TYPE_CHECKING:
    from aqe.nodes import Nodes

#: Passages of a shard: the unit of work of a Ray task, small enough that two cores share a small corpus evenly.
SHARD_ROWS = 50_000
#: And so many characters at most, but for its last passage: what is one part may hold long documents alone.
SHARD_CHARACTERS = 100_000_000
#: Dead letters that a task holds before it writes them.
SHARD_LETTERS = 10_000
#: Raise it when the same files give other passages than before: their artifacts are named by it.
VERSION = 5

STAGE = "corpus"


def read_corpus(config: CorpusConfig, dead: list[dict[str, str]]) -> Iterator[pa.Table]:
    """Tables of at most SHARD_ROWS rows of records.CORPUS, in order; what is set aside is appended to `dead`.

    Memory holds one table and the docids (some 100 bytes each). DataError for files that are missing, unreadable or
    without a column that is needed.
    """
    source = formats.passages(config)
    contract.probe(source, STAGE)
    seen: set[str] = set()

    def unique() -> Iterator[RawRow]:
        for place, row in _passages(numbered(source.parts), source.names):
            if isinstance(row, dict) and row["docid"] in seen:
                row = Flaw(DUPLICATE, row)
            if isinstance(row, Flaw):
                dead.append(contract.letter(STAGE, place, row))
            else:
                seen.add(row["docid"])
                yield row

    yield from _tables(unique())


DUPLICATE = "duplicate docid"


def _passages(parts: Sequence[Part], names: Names) -> Iterator[tuple[str, RawRow | Flaw]]:
    for part in parts:
        for place, row in part.rows(names):
            yield place, contract.passage(row, names) if isinstance(row, dict) else row


def _tables(rows: Iterator[RawRow]) -> Iterator[pa.Table]:
    batch: list[RawRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row["title"]) + len(row["text"])
        if len(batch) == SHARD_ROWS or characters >= SHARD_CHARACTERS:
            yield records.table(batch, records.CORPUS)
            batch, characters = [], 0
    if batch:
        yield records.table(batch, records.CORPUS)


def write_corpus(
    out: Path, config: CorpusConfig, nodes: "Nodes", java: Callable[[], Mapping[str, str]]
) -> dict[str, Any]:
    """Write out/data/*.parquet in the order of the source and, if any, out/dead_letters.parquet: {passages, dead}, and
    the `index` that it was read from, if it was one.

    Starts from nothing: what an unfinished run left is removed. Needs a connection to Ray; `java` gives what a
    worker starts with that reads with a JVM. DataError when no passage remains.
    """
    for name in ("data", "places", "set_aside"):
        shutil.rmtree(out / name, ignore_errors=True)
    source = formats.passages(config)
    contract.probe(source, STAGE)
    _read_all(out, source, nodes, java() if source.needs_java else {})
    drop_duplicates(out)
    dead = _gather_letters(out)
    for name in ("places", "set_aside"):
        shutil.rmtree(out / name, ignore_errors=True)
    passages = sum(pq.read_metadata(path).num_rows for path in sorted((out / "data").glob("*.parquet")))
    if not passages:
        raise DataError(f"corpus: no passage is left of {_said(config)}: {contract.counted(dead) or 'it is empty'}.")
    # An index that stores its passages is what is searched, too.
    index = {"index": str(source.paths[0])} if isinstance(config, AnseriniCorpus) else {}
    return {"passages": passages, "dead": dead.total(), **index}


def _gather_letters(out: Path) -> Counter[str]:
    """Make one file of what was set aside, if anything was; returns how many rows for which reason."""
    files = sorted((out / "set_aside").glob("*.parquet"))
    gathered = out / "dead_letters.parquet"
    gathered.unlink(missing_ok=True)
    if not files:
        return Counter()

    def write(part: Path) -> None:
        # One after the other: they may be as many as the rows of the corpus.
        with pq.ParquetWriter(part, records.DEAD_LETTERS) as target:
            for file in files:
                target.write_table(read_parquet(file))

    put(gathered, write)
    return reasons_of(gathered)


def _said(config: CorpusConfig) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.model_dump(mode="json", exclude_defaults=True).items())


def _read_all(out: Path, source: Source, nodes: "Nodes", env: Mapping[str, str]) -> None:
    """Every part by a task of its own."""
    import ray
    import ray.data

    shared = ray.put((numbered(source.parts), source.names))
    numbers = [{"part": number} for number in range(len(source.parts))]
    done = ray.data.from_items(numbers, override_num_blocks=max(1, len(numbers))).map_batches(
        _read_part,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"out": str(out), "shared": [shared]},
        num_cpus=1,
        label_selector=dict(nodes.labels),
        runtime_env={"env_vars": dict(env)},
    )
    for row in done.iter_rows():
        if row["kind"]:
            raise KINDS[row["kind"]](row["error"])


def _read_part(batch: pa.Table, out: str, shared: list[Any]) -> pa.Table:
    """Runs as a Ray task. An error comes back as a row: Ray Data would make it one of its own."""
    import ray

    parts, names = ray.get(shared[0])
    errors = []
    for number in batch["part"].to_pylist():
        try:
            write_part(Path(out), number, parts[number], names)
            errors.append({"kind": "", "error": ""})
        except AqeError as error:
            errors.append({"kind": type(error).__name__, "error": str(error)})
    return pa.Table.from_pylist(errors)


def write_part(out: Path, number: int, part: Part, names: Names) -> None:
    """A part's passages in out/data, where they stood in out/places, what was set aside in out/set_aside."""
    places: list[str] = []
    letters: list[dict[str, str]] = []
    files = count()

    def set_aside() -> None:
        name = f"{number:06}-{next(files):04}.parquet"
        write_parquet(records.table(letters, records.DEAD_LETTERS), out / "set_aside" / name)
        letters.clear()

    def good() -> Iterator[RawRow]:
        for place, row in _passages([part], names):
            if isinstance(row, Flaw):
                letters.append(contract.letter(STAGE, place, row))
                if len(letters) == SHARD_LETTERS:
                    set_aside()
            else:
                places.append(place)
                yield row

    for shard, table in zip(count(), _tables(good()), strict=False):
        name = f"{number:06}-{shard:04}.parquet"
        write_parquet(pa.table({"place": places[: table.num_rows]}), out / "places" / name)
        del places[: table.num_rows]
        write_parquet(table, out / "data" / name)
    if letters:
        set_aside()


def drop_duplicates(out: Path) -> int:
    """Set aside each passage of which a shard before, or the same one, has the docid; returns how many."""
    shards = sorted((out / "data").glob("*.parquet"))
    again = _seen_before(shards)
    for shard in shards:
        suspects = again.pop(shard.name, None)
        if suspects is None:
            continue
        table, places = read_parquet(shard), read_parquet(out / "places" / shard.name)["place"].to_pylist()
        keep = np.ones(table.num_rows, bool)
        keep[suspects] = False
        letters = [
            contract.letter(STAGE, places[row], Flaw(DUPLICATE, table.slice(row, 1).to_pylist()[0])) for row in suspects
        ]
        write_parquet(records.table(letters, records.DEAD_LETTERS), out / "set_aside" / f"{shard.stem}-again.parquet")
        kept = table.filter(pa.array(keep))
        if kept.num_rows:
            write_parquet(kept, shard)
        else:
            shard.unlink()
    return sum(pq.read_metadata(path).num_rows for path in (out / "set_aside").glob("*-again.parquet"))


def _seen_before(shards: Sequence[Path]) -> dict[str, list[int]]:
    """Shard's name -> rows whose docid stands before, in a shard or row. Holds a hash of each docid."""
    hashes = [_hashes(shard) for shard in shards]
    every = np.concatenate([np.empty(0, np.uint64), *hashes])
    values, counts = np.unique(every, return_counts=True)
    twice = values[counts > 1]
    seen: set[str] = set()
    again: dict[str, list[int]] = {}
    for shard, of_shard in zip(shards, hashes, strict=True):
        # Two docids may share a hash: only those that are the same are duplicates.
        suspects = np.flatnonzero(np.isin(of_shard, twice))
        if not len(suspects):
            continue
        docids = pq.read_table(shard, columns=["docid"])["docid"].take(pa.array(suspects)).to_pylist()
        for row, docid in zip(suspects, docids, strict=True):
            if docid in seen:
                again.setdefault(shard.name, []).append(int(row))
            seen.add(docid)
    return again


def _hashes(shard: Path) -> NDArray[np.uint64]:
    import pandas

    docids = pq.read_table(shard, columns=["docid"])["docid"].to_numpy()
    hashes: NDArray[np.uint64] = pandas.util.hash_array(docids, categorize=False)
    return hashes
