"""Titles and texts of passages by docid, on mapped pages: a corpus need not fit into memory."""

import os
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from filelock import FileLock

from aqe.artifact import MANIFEST, digest, load, read_parquet
from aqe.base_model import cache_directory
from aqe.config.serve import SearchConfig
from aqe.errors import InputError

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
    if (corpus / MANIFEST).exists():
        name = load(corpus).fingerprint
        corpus = corpus / "data"
    else:
        name = digest([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in _files(corpus)])
    path = cache_directory() / "passages" / f"{name}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            data = pads.dataset([str(p) for p in _files(corpus)], format="parquet")
            if missing := set(COLUMNS) - set(data.schema.names):
                raise InputError(f"{corpus} has no column {missing.pop()!r}: a corpus has docid, title and text")
            schema = pa.schema([(name, pa.string()) for name in COLUMNS])
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in data.to_batches(columns=list(COLUMNS)):
                    writer.write_batch(batch.cast(schema))
            os.replace(part, path)
    return path


def _files(corpus: Path) -> list[Path]:
    files = sorted(corpus.glob("*.parquet")) if corpus.is_dir() else [corpus] if corpus.exists() else []
    if not files:
        raise InputError(f"search.corpus {corpus} is no Parquet file and holds none")
    return files


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
