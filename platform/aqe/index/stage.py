"""The stages that index: corpus -> Lucene index -> impact index."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from aqe.artifact import Artifact, digest, file_digest
from aqe.index import jvm
from aqe.index.impacts import build_impacts_on_ray
from aqe.index.lucene import build_index
from aqe.index.shard import VERSION
from aqe.nodes import nodes_of
from aqe.observe.progress import say

if TYPE_CHECKING:
    from aqe.pipeline import Pipeline


def lucene_index(pipeline: "Pipeline") -> Artifact:
    """The Lucene index of the corpus: built, or the one that `index.path` names."""
    config, corpus = pipeline.config.index, pipeline.corpus
    given = config.path

    def build(out: Path) -> dict[str, Any]:
        if given is not None:
            link = out / "lucene"
            link.unlink(missing_ok=True)
            link.symlink_to(given)
            return {"passages": corpus.stats["passages"]}
        # A worker process of its own, with the environment that a JVM needs inside Ray.
        labels = dict(nodes_of("cpu").labels)
        task = ray.remote(num_cpus=1, label_selector=labels, runtime_env={"env_vars": jvm.ray_env()})(build_index)
        stats: dict[str, Any] = ray.get(task.remote(out, corpus.path / "data", config, say))
        return stats

    return pipeline.make(
        "build_index",
        config=config.model_dump(include={"language"}),
        inputs={"corpus": corpus, **({} if given is None else {"given": _identity(given)})},
        packages=("pyserini",),
        build=build,
    )


def _identity(index: Path) -> str:
    """What tells a Lucene index from another: its commit, and the names and sizes of its files."""
    commits = [file_digest(path) for path in sorted(index.glob("segments_*"))]
    return digest([commits, sorted((path.name, path.stat().st_size) for path in index.iterdir())])


def impact_index(pipeline: "Pipeline") -> Artifact:
    """The index of exact gold ranks, made from the Lucene index."""
    config, index = pipeline.config.index, pipeline.index
    return pipeline.make(
        "build_impacts",
        config={**config.model_dump(include={"language", "passages_per_shard"}), "format": VERSION},
        inputs={"index": index},
        build=lambda out: build_impacts_on_ray(out, index.path / "lucene", config, nodes_of("cpu").labels),
    )
