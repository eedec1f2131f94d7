"""The stages that read what the user brought: passages and queries to their contracts, and which belong together."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from aqe.artifact import Artifact, digest, file_digest, read_parquet
from aqe.config.base import Config
from aqe.config.sources import SPLITS, CorpusConfig, FileQueries, Files, QuerySource, Split
from aqe.config.splits import SplitsConfig, origins
from aqe.corpus import contract, formats, judge, passages, queries
from aqe.errors import DataError
from aqe.index import jvm
from aqe.nodes import on_node
from aqe.observe import metrics
from aqe.run import Run


def ingest_corpus(run: Run, config: CorpusConfig) -> Artifact:
    """Passages as the contract has them (`data/`, records.CORPUS), bad rows set aside."""

    def build(out: Path) -> Mapping[str, Any]:
        stats = passages.write_corpus(out, config, run.nodes("cpu"), jvm.ray_env)
        return _counted(run, "corpus", out, stats, "passages")

    return run.make(
        "corpus",
        config={**_described(config), "reader": passages.VERSION},
        inputs={"source": formats.passages(config).identity},
        build=build,
    )


def ingest_queries(run: Run, config: SplitsConfig, *, written: Artifact | None = None) -> Artifact:
    """train.parquet, dev.parquet, test.parquet (records.QUERIES); no query in two of them.

    `written` has the queries that a model was asked for (aqe.synthetic).
    """
    config = config if written is None else config.written(written.path)
    splits = {split: config.sources(split) for split in SPLITS}

    def build(out: Path) -> Mapping[str, Any]:
        stats: Mapping[str, int] = on_node(run.nodes("cpu"), queries.write_queries, out, config)
        return _counted(run, "queries", out, stats, *SPLITS)

    return run.make(
        "queries",
        config={
            **{split: [_described(source) for source in sources] for split, sources in splits.items()},
            "datasets": {split: config.datasets(split) for split in SPLITS},
            **({} if config.split is None else {"split": config.split.model_dump()}),
            "reader": queries.VERSION,
        },
        inputs={split: " ".join(map(_identity, sources)) for split, sources in splits.items()},
        parents=() if written is None else (written,),
        build=build,
    )


def _described(source: Config) -> dict[str, Any]:
    """A source but for where its files lie."""
    paths = len(source.paths) if isinstance(source, Files) else 0
    described = source.model_dump(mode="json", exclude={"path", "without", "id", "prebuilt"})
    if isinstance(qrels := described.get("qrels"), dict):
        described["qrels"] = {name: value for name, value in qrels.items() if name not in ("path", "id")}
    return {**described, "paths": paths}


def _identity(source: QuerySource) -> str:
    """What tells the rows of a source, and its judgements, from others."""
    own = [formats.queries(source, origin if isinstance(origin, Path) else None).identity for origin in origins(source)]
    judged = formats.qrels(source)
    without = [file_digest(path) for path in source.without] if isinstance(source, FileQueries) else []
    return digest([own, None if judged is None else judged.identity, without])


def _counted(run: Run, stage: str, out: Path, stats: Mapping[str, int], *kept: str) -> Mapping[str, int]:
    """The statistics of a reader, unless it had to leave out too many rows. Says what it set aside, and where."""
    # A query that a later split has too is left out on purpose.
    dead = stats["dead"] - stats.get("shared", 0)
    total = dead + sum(stats[key] for key in kept)
    metrics.count(metrics.DEAD_LETTERS, dead, stage=stage)
    metrics.count(metrics.ROWS, total, stage=stage)
    letters = out / "dead_letters.parquet"
    reasons: dict[str, Counter[str]] = {}
    if stats["dead"]:
        why = pq.read_table(letters, columns=["stage", "reason"]).group_by(["stage", "reason"])
        for row in why.aggregate([([], "count_all")]).to_pylist():
            reasons.setdefault(row["stage"], Counter())[row["reason"]] = row["count_all"]
    for key in kept:
        name = stage if stage == "corpus" else f"{stage}.{key}"
        aside = Counter[str]()
        for of, counts in reasons.items():
            if of == name or of.startswith(f"{name}.") or (of.startswith("queries.all") and key == kept[0]):
                aside.update(counts)
        noun = "passages" if stage == "corpus" else "queries"
        more = f", {aside.total():,} set aside ({contract.counted(aside)}), see {letters}" if aside else ""
        run.say(f"{'corpus' if stage == 'corpus' else key}: {stats[key]:,} {noun}{more}")
    # Judgements are many more than queries: a few that are bad must not stop those, nor hide bad queries among them.
    of_qrels = sum(counts.total() for of, counts in reasons.items() if of.endswith(".qrels"))
    run.check_dead(stage, letters, dead - of_qrels, total - of_qrels)
    run.check_dead(f"{stage}.qrels", letters, of_qrels, of_qrels + stats.get("judgements", 0))
    return stats


def judge_queries(run: Run, *, split: Split, corpus: Artifact, queries: Artifact) -> Artifact:
    """queries.parquet (records.JUDGED) and qrels.parquet of a split.

    Queries without a relevant passage are set aside and counted. DataError when no query has one.
    """
    source = queries.path / f"{split}.parquet"

    def build(out: Path) -> dict[str, Any]:
        say = partial(run.note, out, "judge_queries")
        return judge.write_judgement(out, corpus.path, read_parquet(source), say, run.nodes("cpu").labels)

    judged = run.make(
        "judge_queries",
        config={"split": split, "rule": judge.VERSION},
        inputs={"corpus": corpus, "queries": file_digest(source)},
        parents=(queries,),
        packages=judge.PACKAGES,
        build=build,
    )
    if not judged.stats["judged"]:
        raise DataError(
            f"queries.{split}: none of its {judged.stats['queries']} queries has a relevant passage in the corpus. "
            "Its `positives` must be docids of this corpus, or its `answers` must stand in a passage."
        )
    return judged
