"""The stages that rank and search: judged queries with their expansions -> gold ranks, or hits, on CPU actors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aqe.artifact import Artifact, Slices, Wanted
from aqe.pools import run_parts
from aqe.rank.retriever import Retriever
from aqe.rank.workers import QueryReader, RankWorker, SearchWorker
from aqe.run import Run
from aqe.units import Part, Work, check_complete, cut_units, with_files

#: Queries that one task searches. One text each, where ranking has all candidates.
SEARCHED_TOGETHER = 32
#: Raise it when ranks or hits of the same texts come out otherwise than before.
VERSION = 2


def rank_expansions(run: Run, retriever: Retriever, *, judged: Artifact, samples: Artifact, stage: str) -> Artifact:
    """Exact gold ranks of the plain query and of each of its candidates in `samples`: `data/` (records.RANKS).

    A query without candidates is in the dead letters of the stage that sampled; it has no ranks.
    """
    size = retriever.config.queries_per_unit
    wanted = Wanted(
        stage,
        {**retriever.settings("ndcg_at"), "version": VERSION},
        {"samples": samples, "index": retriever.index, "qrels": judged},
        packages=retriever.packages,
    )
    texts = Texts(stage, retriever, judged, samples)
    return run.make_all([wanted], partial(_work, run, stage, RankWorker, [texts], size))[0]


@dataclass(frozen=True)
class Texts:
    """What a stage composes and searches: judged queries with their expansions, or plain where that is None."""

    stage: str
    retriever: Retriever
    judged: Artifact
    expansions: Artifact | None

    @property
    def queries(self) -> Path:
        return self.judged.path / "queries.parquet"


def search_expansions(
    run: Run, retriever: Retriever, *, judged: Artifact, expansions: Artifact | None, stage: str
) -> Artifact:
    """Hits and gold rank of each query with its one expansion, of the plain query where `expansions` is None.

    `data/` (records.SEARCHED). A query that `expansions` has not is not searched.
    """
    return search_all(run, stage, [Texts(stage, retriever, judged, expansions)])[0]


def search_all(run: Run, name: str, texts: Sequence[Texts]) -> list[Artifact]:
    """The same for several stages that search one index: one pool, which `name` names, opens it."""
    wanted = [
        Wanted(
            one.stage,
            {**one.retriever.settings(), "version": VERSION},
            {
                "index": one.retriever.index,
                "qrels": one.judged,
                **({} if one.expansions is None else {"expansions": one.expansions}),
            },
            packages=one.retriever.packages,
        )
        for one in texts
    ]
    return run.make_all(wanted, partial(_work, run, name, SearchWorker, texts, SEARCHED_TOGETHER))


def _work(
    run: Run,
    name: str,
    worker: type[RankWorker] | type[SearchWorker],
    texts: Sequence[Texts],
    size: int,
    missing: Mapping[int, Path],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """What they all share: a pool of ranker actors over units of `size` queries."""
    pool = texts[0].retriever.pool(run.nodes("cpu"))
    for group in _lives(texts, list(missing)):
        source = texts[group[0]].retriever.source(pool.labels)
        parts = []
        for i in group:
            one = texts[i]
            units = cut_units(len(Slices(one.queries)), size)
            if one.expansions is not None:
                # Perhaps not all queries were expanded: those at the end have no file.
                units = [unit for unit in with_files(units, "expansions", one.expansions) if unit.files["expansions"]]
            said = None if one.expansions is None else one.expansions.path / "data"
            if not source.one_setting:
                source = one.retriever.source(pool.labels)
            args = {"config": one.retriever.config, "stage": one.stage}
            reads = (*one.retriever.reads, one.queries, *([] if said is None else [said]))
            read = QueryReader(one.queries, said)
            work = Work(worker, args, read, worker.schema, quick=True, reads=reads, source=source)
            parts.append(Part(one.stage, missing[i], units, work))
        for place, stats in run_parts(run, name, parts, pool):
            one = texts[group[place]]
            if one.expansions is not None:
                check_complete(one.stage, stats, one.expansions)
            yield group[place], {"engine": one.retriever.config.engine, **stats}


def _lives(texts: Sequence[Texts], places: Sequence[int]) -> list[list[int]]:
    """What one pool does in its life: everything, unless shards are spread over the nodes.

    These have one setting of BM25, and take the nodes' memory: those with another come when they have gone.
    """
    lives: list[list[int]] = []
    for i in places:
        alike = (
            life for life in lives if not texts[i].retriever.spread or texts[life[0]].retriever == texts[i].retriever
        )
        if (life := next(alike, None)) is not None:
            life.append(i)
        else:
            lives.append([i])
    return lives
