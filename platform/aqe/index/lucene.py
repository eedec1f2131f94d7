"""The Lucene index: built by Anserini through Pyserini, opened for exact scoring."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aqe.config.data import IndexConfig
from aqe.errors import InputError
from aqe.index import jvm
from aqe.observe.progress import Progress, Say

#: Passages handed to Java at once.
BATCH = 2_000


def _batches(corpus: Path) -> Iterator[pa.RecordBatch]:
    for path in sorted(corpus.glob("*.parquet")):
        yield from pq.ParquetFile(path).iter_batches(BATCH)


def build_index(out: Path, corpus: Path, config: IndexConfig, say: Say) -> dict[str, Any]:
    """Index the passages (title, newline, text) of the Parquet files in `corpus` into `out`/lucene.

    Runs in this process, which gets a JVM. Returns passages, seconds and bytes. An index that an interrupted run
    left is made anew. Raises InputError when the corpus is empty or the analyzer's language is unknown (Anserini would
    take English in silence).
    """
    total = sum(pq.ParquetFile(p).metadata.num_rows for p in corpus.glob("*.parquet"))
    if total == 0:
        raise InputError(f"{corpus} holds no passage to index")
    target = out / "lucene"
    shutil.rmtree(target, ignore_errors=True)
    analyzer(jvm.start(config.jvm_heap), config.language)
    from pyserini.index.lucene import LuceneIndexer

    args = ["-index", str(target), "-language", config.language, "-memoryBuffer", "256"]
    threads = config.threads or os.cpu_count() or 1
    indexer = LuceneIndexer(args=args, threads=threads)
    started = time.perf_counter()
    with Progress("build_index", total, "passages", say) as progress:
        for batch in _batches(corpus):
            columns = batch.to_pydict()
            indexer.add_batch_dict(
                [
                    {"id": docid, "contents": f"{title}\n{text}"}
                    for docid, title, text in zip(columns["docid"], columns["title"], columns["text"], strict=True)
                ]
            )
            progress.update(batch.num_rows)
        indexer.close()
    seconds = time.perf_counter() - started
    return {
        "passages": total,
        "seconds": round(seconds, 2),
        "cpu_hours": round(seconds * threads / 3600, 5),
        "bytes": sum(p.stat().st_size for p in target.rglob("*") if p.is_file()),
    }


def analyzer(java: Any, language: str) -> Any:
    """The analyzer that the index was built with."""
    if language == "en":
        return java("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()
    name = java("io.anserini.analysis.AnalyzerMap").analyzerMap.get(language)
    if name is None:
        raise InputError(f"index.language {language!r}: Anserini has no analyzer for it")
    return java(name)()
