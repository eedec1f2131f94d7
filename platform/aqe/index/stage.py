"""The stages that index: corpus -> Lucene index -> impact index."""

from pathlib import Path
from typing import Any

from aqe.artifact import Artifact, digest, file_digest
from aqe.config.data import IndexConfig
from aqe.index import jvm
from aqe.index.convert import build_impacts_on_ray
from aqe.index.lucene import build_index, check_vectors
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
            if vectors:
                on_node(run.nodes("cpu"), check_vectors, given, config.jvm_heap, env=jvm.ray_env())
            link = out / "lucene"
            link.unlink(missing_ok=True)
            link.symlink_to(given)
            return {"passages": corpus.stats["passages"]}
        # A worker process of its own, with the environment that a JVM needs inside Ray.
        stats: dict[str, Any] = on_node(
            run.nodes("cpu"), build_index, out, corpus.path / "data", config, run.say, vectors, env=jvm.ray_env()
        )
        return stats

    return run.make(
        stage,
        config=config.model_dump(include={"language"}),
        inputs={"corpus": corpus, **({} if given is None else {"given": _identity(given)})},
        packages=("pyserini",),
        build=build,
    )


def _identity(index: Path) -> str:
    """What tells a Lucene index from another: its commit, and the names and sizes of its files."""
    commits = [file_digest(path) for path in sorted(index.glob("segments_*"))]
    return digest([commits, sorted((path.name, path.stat().st_size) for path in index.iterdir())])


def impact_index(run: Run, config: IndexConfig, *, index: Artifact) -> Artifact:
    """The index of exact gold ranks, made from the Lucene index: impacts-*.safetensors."""
    return run.make(
        "build_impacts",
        config={**config.model_dump(include={"language", "passages_per_shard"}), "format": VERSION},
        inputs={"index": index},
        build=lambda out: build_impacts_on_ray(out, index.path / "lucene", config, run.nodes("cpu")),
    )
