"""The stages that index: corpus -> Lucene index -> impact index."""

import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from aqe.artifact import Artifact, digest, file_digest, parquet_files
from aqe.config.data import IndexConfig
from aqe.errors import DataError
from aqe.index import jvm
from aqe.index.convert import build_impacts_on_ray
from aqe.index.lucene import build_index, check_vectors, passages_of
from aqe.index.shard import VERSION
from aqe.nodes import on_node
from aqe.run import Run


def lucene_index(run: Run, config: IndexConfig, *, corpus: Artifact) -> Artifact:
    """The Lucene index of the corpus, in `lucene/`: built, or the one that `index.path` names."""
    return _index(run, "build_index", config, False, corpus)


def vector_index(run: Run, config: IndexConfig, *, corpus: Artifact) -> Artifact:
    """One that stores the terms of each passage too, which RM3 reads; no rank depends on it, so it is one of its own.

    InputError when the one that `index.path` names does not store them.
    """
    return _index(run, "build_index_vectors", config, True, corpus)


def _index(run: Run, stage: str, config: IndexConfig, vectors: bool, corpus: Artifact) -> Artifact:
    # Named, or what the corpus was read from.
    stored = corpus.stats.get("index")
    given = config.path or (None if stored is None else Path(stored))

    def build(out: Path) -> dict[str, Any]:
        if given is not None:
            _same_corpus(run, config, given, corpus)
            if vectors:
                on_node(run.nodes("cpu"), check_vectors, given, config.jvm_heap, env=jvm.ray_env())
            _lead(out, given)
            return {"passages": corpus.stats["passages"]}
        # A worker process of its own, with the environment that a JVM needs inside Ray.
        args = (out, corpus.path / "data", config, run.say, vectors, run.title(out, stage))
        stats: dict[str, Any] = on_node(run.nodes("cpu"), build_index, *args, env=jvm.ray_env())
        return stats

    made = run.make(
        stage,
        config=config.model_dump(include={"language"}),
        inputs={"corpus": corpus, **({} if given is None else {"given": _identity(given)})},
        packages=("pyserini",),
        build=build,
    )
    if given is not None:
        # It may have been moved since.
        _lead(made.path, given)
    return made


def _lead(out: Path, index: Path) -> None:
    """Have out/lucene lead to an index that is there already."""
    link = out / "lucene"
    if not link.is_symlink() or link.readlink() != index:
        part = out / f".lucene.{uuid.uuid4().hex}.part"
        part.symlink_to(index)
        os.replace(part, link)


def _same_corpus(run: Run, config: IndexConfig, index: Path, corpus: Artifact) -> None:
    """DataError unless the index holds as many passages as the corpus, and a sample of its docids.

    It may hold the rows that were set aside on reading too.
    """
    docids = _sample_of_docids(corpus)
    held, missing = on_node(run.nodes("cpu"), passages_of, index, config.jvm_heap, docids, env=jvm.ray_env())
    if missing is None and 0 <= held - corpus.stats["passages"] <= corpus.stats["dead"]:
        return
    why = f"it lacks {missing!r}" if missing is not None else f"it has all {len(docids)} docids that were looked up"
    raise DataError(
        f"index.path: {index} holds {held:,} passages, the corpus {corpus.stats['passages']:,}, and {why}: it was made "
        "from another corpus. Ranks would count passages that the corpus lacks. Name the corpus that it was made from, "
        "or leave index.path out and one is built."
    )


def _sample_of_docids(corpus: Artifact) -> list[str]:
    """The first and last docid of each file, and some between."""
    docids: list[str] = []
    for file in parquet_files(corpus.path):
        with pq.ParquetFile(file) as source:
            groups = source.num_row_groups
            for group in sorted({0, groups // 2, groups - 1} if groups else ()):
                column = source.read_row_group(group, columns=["docid"])["docid"]
                docids += column.take(sorted({0, len(column) // 2, len(column) - 1})).to_pylist() if len(column) else []
    return docids


def _identity(index: Path) -> str:
    """What tells a Lucene index from another: its commit, and the names and sizes of its files."""
    commits = [file_digest(path) for path in sorted(index.glob("segments_*"))]
    return digest([commits, sorted((path.name, path.stat().st_size) for path in index.iterdir())])


def impact_index(run: Run, config: IndexConfig, *, index: Artifact) -> Artifact:
    """The index of exact gold ranks, made from the Lucene index: impacts-*.safetensors."""

    def build(out: Path) -> dict[str, Any]:
        title = run.title(out, "build_impacts")
        return build_impacts_on_ray(out, index.path / "lucene", config, run.nodes("cpu"), title)

    return run.make(
        "build_impacts",
        config={**config.model_dump(include={"language", "passages_per_shard"}), "format": VERSION},
        inputs={"index": index},
        build=build,
    )
