"""RM3 as a control: its settings chosen on dev, then one search of each query that is reported on."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aqe.artifact import Artifact, Slices, read_parquet
from aqe.evaluate.choice import Choice
from aqe.evaluate.grid import Ladder, Point, Values, climb, name
from aqe.evaluate.tune import TUNED, by_point
from aqe.pools import run_units
from aqe.rank.feedback import FeedbackSource, Rm3, rank_in
from aqe.rank.retriever import Retriever
from aqe.rank.stage import SEARCHED_TOGETHER
from aqe.rank.workers import QueryReader
from aqe.ranker import DEPTH, Hit
from aqe.records import SEARCHED, table
from aqe.run import Run
from aqe.units import Result, Row, Work, cut_units

#: Around Anserini's defaults: 10 passages, 10 terms, half of the weight.
LADDERS = (
    Ladder("passages", (2, 5, 10, 20, 40), 1, 2),
    Ladder("terms", (5, 10, 20, 40, 80), 1, 2),
    Ladder("weight", (0.3, 0.5, 0.7, 0.8, 0.9, 0.95), 1, 3),
)
#: Raise it when the same settings find other passages than before.
VERSION = 1
#: Queries of dev that are searched at each point, at most: one search takes some milliseconds.
DEV_QUERIES = 1_000


class _Rm3Worker:
    def __init__(self, source: FeedbackSource, points: Sequence[Point]) -> None:
        self._searcher = source.open()
        self._points = [Rm3(int(passages), int(terms), weight) for passages, terms, weight in points]

    def _found(self, row: Row, point: Rm3) -> list[Hit]:
        """What is found for a query, but for what its ranking is without."""
        excluded = set(row["excluded"])
        return [hit for hit in self._searcher.search(row["query"], point) if hit.docid not in excluded]

    def _passages(self, row: Row) -> int:
        return self._searcher.num_passages - len(row["excluded"])


class TryWorker(_Rm3Worker):
    """Gold rank of each query at each point: TUNED."""

    def __call__(self, rows: Sequence[Row]) -> Result:
        ranks = []
        for number, point in enumerate(self._points):
            for row in rows:
                hits = self._found(row, point)
                _, rank, score = rank_in(hits, row["relevant"], self._passages(row))
                ranks.append({"qid": row["qid"], "point": number, "gold_rank": rank, "score": score})
        return Result(table(ranks, TUNED), counts={"ranks": len(ranks)})


class FeedbackWorker(_Rm3Worker):
    """One search of each query: records.SEARCHED, without expansions that could be shown."""

    def __call__(self, rows: Sequence[Row]) -> Result:
        return Result(table(map(self._search, rows), SEARCHED), counts={"ranks": len(rows)})

    def _search(self, row: Row) -> dict[str, Any]:
        started = time.perf_counter()
        hits = self._found(row, self._points[0])
        seconds = time.perf_counter() - started
        docid, rank, score = rank_in(hits, row["relevant"], self._passages(row))
        return {
            "qid": row["qid"],
            "expansion": "",
            "composed": row["query"],
            "gold_docid": docid,
            "gold_rank": rank,
            "score": score,
            "docids": [hit.docid for hit in hits[:DEPTH]],
            "scores": [hit.score for hit in hits[:DEPTH]],
            "search_ms": 1000 * seconds,
        }


def tune_rm3(run: Run, retriever: Retriever, *, index: Artifact, judged: Artifact) -> tuple[Point, Choice]:
    """The settings with the highest MRR, of the first DEV_QUERIES of a split to choose by. `index` is Lucene's."""
    values = climb(LADDERS, partial(_values, run, retriever, index, judged))
    mrr = {point: float(np.mean(of_point)) for point, of_point in values.items()}
    best = max(mrr, key=mrr.__getitem__)
    tried: Mapping[str, float] = {name(LADDERS, point): round(value, 5) for point, value in sorted(mrr.items())}
    return best, Choice(tried, name(LADDERS, best))


def _values(run: Run, retriever: Retriever, index: Artifact, judged: Artifact, points: Sequence[Point]) -> Values:
    ranks = _work(run, "tune_rm3", TryWorker, retriever, index, judged, points, DEV_QUERIES)
    return by_point(
        ranks.read(), points, read_parquet(judged.path / "queries.parquet")["qid"].to_pylist()[:DEV_QUERIES]
    )


def search_rm3(run: Run, retriever: Retriever, point: Point, *, index: Artifact, judged: Artifact) -> Artifact:
    """`data/` (records.SEARCHED) of all queries with these settings; `index` is Lucene's."""
    return _work(run, "search_bm25_rm3", FeedbackWorker, retriever, index, judged, [point], None)


def _work(
    run: Run,
    stage: str,
    worker: type[TryWorker] | type[FeedbackWorker],
    retriever: Retriever,
    index: Artifact,
    judged: Artifact,
    points: Sequence[Point],
    limit: int | None,
) -> Artifact:
    queries = judged.path / "queries.parquet"

    def build(out: Path) -> dict[str, Any]:
        pool = retriever.java_pool(run.nodes("cpu"))
        units = cut_units(min(len(Slices(queries)), limit or len(Slices(queries))), SEARCHED_TOGETHER)
        args = {"source": FeedbackSource(index.path, retriever.bm25), "points": points}
        schema = TUNED if worker is TryWorker else SEARCHED
        work = Work(worker, args, QueryReader(queries, None), schema, quick=True, reads=(index.path, queries))
        return run_units(run, stage, out, units, work, pool)

    bm25 = retriever.bm25.model_dump(include={"k1", "b", "language"})
    return run.make(
        stage,
        config={**bm25, "points": points, "limit": limit, "version": VERSION},
        inputs={"index": index, "qrels": judged},
        packages=("pyserini",),
        build=build,
    )
