"""Titles and texts of passages by docid, on mapped pages: a corpus need not fit into memory."""

from bisect import bisect_left
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from filelock import FileLock

from aqe.artifact import MANIFEST, digest, load, parquet_files, read_parquet
from aqe.config.serve import SearchConfig
from aqe.errors import ArtifactError, InputError
from aqe.storage import cache_directory, put

COLUMNS = ("docid", "title", "text")
#: Example queries, at most.
EXAMPLES = 60


class Passages:
    """The corpus as one Arrow file (made once from its Parquet files), and its rows in the order of their docids."""

    def __init__(self, corpus: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(_arrow_file(corpus)))).read_all()
        self._docids, self._titles, self._texts = (table[name] for name in COLUMNS)
        # Arrow orders texts by their bytes, as bisect below does.
        self._order = pc.sort_indices(self._docids).to_numpy()

    def get(self, docid: str) -> tuple[str | None, str | None]:
        """Title and text of a passage, or nothing."""
        wanted = docid.encode()
        at = bisect_left(self._order, wanted, key=lambda row: self._docids[int(row)].as_py().encode())
        if at == len(self._order):
            return None, None
        row = int(self._order[at])
        if self._docids[row].as_py() != docid:
            return None, None
        return self._titles[row].as_py(), self._texts[row].as_py()


def _arrow_file(corpus: Path) -> Path:
    """An uncompressed copy of the corpus in the cache: Parquet's pages cannot be mapped."""
    try:
        files = parquet_files(corpus)
    except ArtifactError as error:
        raise InputError(f"search.corpus: {error}") from None
    if (corpus / MANIFEST).exists():
        name = load(corpus).fingerprint
    else:
        name = digest([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    path = cache_directory() / "passages" / f"{name}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            data = pads.dataset([str(file) for file in files], format="parquet")
            if missing := set(COLUMNS) - set(data.schema.names):
                raise InputError(f"{corpus} has no column {missing.pop()!r}: a corpus has docid, title and text")
            put(path, partial(_write, data))
    return path


def _write(data: Any, path: Path) -> None:
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in data.to_batches(columns=list(COLUMNS)):
            writer.write_batch(batch.cast(schema))


def load_examples(config: SearchConfig) -> list[dict[str, Any]]:
    """Queries that have a relevant passage, with their docids."""
    if config.queries is None:
        return []
    relevant: dict[str, list[str]] = {}
    for path in config.qrels:
        for row in read_parquet(path).to_pylist():
            if row["relevance"] > 0:
                relevant.setdefault(row["qid"], []).append(row["docid"])
    known = [row for row in read_parquet(config.queries).select(["qid", "text"]).to_pylist() if row["qid"] in relevant]
    return [{"query": row["text"], "gold": relevant[row["qid"]]} for row in known[:EXAMPLES]]
