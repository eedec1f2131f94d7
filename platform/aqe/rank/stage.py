"""The stages that rank and search: judged queries with their expansions -> gold ranks, or hits, on CPU actors."""

from pathlib import Path
from typing import Any

from aqe.artifact import Artifact, Slices
from aqe.rank.retriever import Retriever
from aqe.rank.workers import QueryReader, RankWorker, SearchWorker
from aqe.run import Run
from aqe.units import Work, check_complete, cut_units, run_units, with_files

#: Queries that one task searches. One text each, where ranking has all candidates.
SEARCHED_TOGETHER = 32
#: Raise it when ranks or hits of the same texts come out otherwise than before.
VERSION = 2


def rank_expansions(run: Run, retriever: Retriever, *, judged: Artifact, samples: Artifact, stage: str) -> Artifact:
    """Exact gold ranks of the plain query and of each of its candidates in `samples`: `data/` (records.RANKS).

    A query without candidates is in the dead letters of the stage that sampled; it has no ranks.
    """
    size = retriever.config.queries_per_unit
    return run.make(
        stage,
        config={**retriever.settings("ndcg_at"), "version": VERSION},
        inputs={"samples": samples, "index": retriever.index, "qrels": judged},
        packages=retriever.packages,
        build=lambda out: _work(run, stage, out, RankWorker, retriever, judged, samples, size),
    )


def search_expansions(
    run: Run, retriever: Retriever, *, judged: Artifact, expansions: Artifact | None, stage: str
) -> Artifact:
    """Hits and gold rank of each query with its one expansion, of the plain query where `expansions` is None.

    `data/` (records.SEARCHED). A query that `expansions` has not is not searched.
    """
    return run.make(
        stage,
        config={**retriever.settings(), "version": VERSION},
        inputs={
            "index": retriever.index,
            "qrels": judged,
            **({} if expansions is None else {"expansions": expansions}),
        },
        packages=retriever.packages,
        build=lambda out: _work(run, stage, out, SearchWorker, retriever, judged, expansions, SEARCHED_TOGETHER),
    )


def _work(
    run: Run,
    stage: str,
    out: Path,
    worker: type[RankWorker] | type[SearchWorker],
    retriever: Retriever,
    judged: Artifact,
    expansions: Artifact | None,
    size: int,
) -> dict[str, Any]:
    """What the two stages share: a pool of ranker actors over units of `size` queries."""
    queries = judged.path / "queries.parquet"
    units = cut_units(len(Slices(queries)), size)
    if expansions is not None:
        # Perhaps not all queries were expanded: those at the end have no file.
        units = [unit for unit in with_files(units, "expansions", expansions) if unit.files["expansions"]]
    pool = retriever.pool(run.nodes("cpu"))
    texts = None if expansions is None else expansions.path / "data"
    args = {"source": retriever.source(pool.labels), "stage": stage}
    reads = (*retriever.reads, queries, *([] if texts is None else [texts]))
    work = Work(worker, args, QueryReader(queries, texts), worker.schema, quick=True, reads=reads)
    stats = run_units(run, stage, out, units, work, pool)
    if expansions is not None:
        check_complete(stage, stats, expansions)
    return {"engine": retriever.config.engine, **stats}
