"""BM25's k1 and b chosen on dev, by the plain queries: the control that no expansion may be compared without.

The grid is coarse, because a fine one is chosen by chance. The configured setting stays unless the best one is above it
by more than chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aqe.artifact import Artifact, Slices, read_parquet
from aqe.config.evaluate import EvaluateConfig
from aqe.evaluate.grid import Ladder, Point, Values, climb, name
from aqe.evaluate.measures import reciprocal_rank, shown_ranks
from aqe.evaluate.significance import Interval, bootstrap_means, interval
from aqe.pools import run_units
from aqe.rank.retriever import RankerSource, Retriever
from aqe.rank.stage import SEARCHED_TOGETHER, VERSION
from aqe.rank.workers import QueryReader, gold_ranks
from aqe.records import table
from aqe.run import Run
from aqe.units import Result, Row, Work, cut_units

#: Steps that about double k1; how much of a passage's length counts, from none to all.
LADDERS = (
    Ladder("k1", (0.0, 0.025, 0.05, 0.1, 0.2, 0.4, 0.9, 1.6, 3.2, 6.4), 5, 7),
    Ladder("b", (0.0, 0.2, 0.4, 0.7, 1.0), 1, 3),
)

#: Gold rank of a plain query at one point of the grid, given by its number; a `score` of 0 means not found.
TUNED = pa.schema([("qid", pa.string()), ("point", pa.int32()), ("gold_rank", pa.int32()), ("score", pa.float32())])

#: How queries are composed with expansions changes no plain query.
_PLAIN = {"query_weight": 1, "distinct_words": False}


@dataclass(frozen=True)
class Tuned:
    """What was tried, and what stands."""

    configured: Point
    chosen: Point
    queries: int
    mrr: Mapping[Point, float]
    """Of each point that was tried, over all dev queries."""
    gain: Interval | None
    """MRR of the best point minus that of the configured one; None where that is the best, or nothing was tried."""
    why: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "chosen": name(LADDERS, self.chosen),
            "configured": name(LADDERS, self.configured),
            "dev_queries": self.queries,
            "dev_mrr": {name(LADDERS, point): round(value, 5) for point, value in sorted(self.mrr.items())},
            "gain": None if self.gain is None else self.gain.as_dict(),
            "why": self.why,
        }


class TuneWorker:
    """Ranks plain queries at each point."""

    def __init__(self, source: RankerSource, points: Sequence[Point]) -> None:
        self._at, self._points = source.open_at(), points

    def __call__(self, rows: Sequence[Row]) -> Result:
        ranks: list[dict[str, Any]] = []
        for number, (k1, b) in enumerate(self._points):
            ranker = self._at(k1, b)
            for row in rows:
                gold = gold_ranks(ranker, [row["query"]], row)[0]
                ranks.append({"qid": row["qid"], "point": number, "gold_rank": gold.rank, "score": gold.score})
        return Result(table(ranks, TUNED), counts={"ranks": len(ranks)})


def tune_bm25(run: Run, retriever: Retriever, config: EvaluateConfig, *, judged: Artifact) -> Tuned:
    """The setting that everything is ranked and searched with, from the plain queries of a split to choose by.

    With fewer than `tune_queries` of them the configured setting stands untried: less chooses by chance.
    """
    configured: Point = (retriever.bm25.k1, retriever.bm25.b)
    queries = len(Slices(judged.path / "queries.parquet"))
    if not config.tune_queries or queries < config.tune_queries:
        few = f"{queries:,} dev queries are fewer than evaluate.tune_queries ({config.tune_queries:,})"
        why = f"{name(LADDERS, configured)} as configured, " + (
            few if config.tune_queries else "because tune_queries is 0"
        )
        tuned = Tuned(configured, configured, queries, {}, None, why)
    else:
        tuned = decide(configured, climb(LADDERS, partial(_values, run, retriever, judged), (configured,)), config)
    run.say(f"BM25: {tuned.why}")
    return tuned


def decide(configured: Point, values: Values, config: EvaluateConfig) -> Tuned:
    """The best point, if the interval of its gain over the configured one lies above 0; of equals the first."""
    mrr = {point: float(of_point.mean()) for point, of_point in values.items()}
    queries, best = len(values[configured]), max(mrr, key=mrr.__getitem__)
    if best == configured:
        return Tuned(configured, best, queries, mrr, None, f"{name(LADDERS, best)} is the best on dev")
    differences = (values[best] - values[configured])[:, None]
    drawn = bootstrap_means(differences, config.bootstrap, config.seed)[:, 0]
    gain = interval(float(differences.mean()), drawn, config.confidence)
    shown = f"MRR {100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] on {queries:,} dev queries"
    was, new = name(LADDERS, configured), name(LADDERS, best)
    if gain.low <= 0:
        return Tuned(configured, configured, queries, mrr, gain, f"{was} stays: {new} is not surely better ({shown})")
    return Tuned(configured, best, queries, mrr, gain, f"{new} in place of {was}: {shown}")


def _values(run: Run, retriever: Retriever, judged: Artifact, points: Sequence[Point]) -> Values:
    """Reciprocal rank of each plain query at each of these points."""
    if retriever.config.spread_shards and len(points) > 1:
        # Shards that fill the cluster's memory cannot be there once for each point.
        return {point: values for one in points for point, values in _values(run, retriever, judged, [one]).items()}
    queries = judged.path / "queries.parquet"

    def build(out: Path) -> dict[str, Any]:
        pool = retriever.pool(run.nodes("cpu"))
        source = retriever.at(*points[0]).source(pool.labels)
        units = cut_units(len(Slices(queries)), SEARCHED_TOGETHER)
        args = {"source": source, "points": points}
        reads = (*retriever.reads, queries)
        work = Work(TuneWorker, args, QueryReader(queries, None), TUNED, quick=True, reads=reads)
        return run_units(run, "tune_bm25", out, units, work, pool)

    ranks = run.make(
        "tune_bm25",
        config={**retriever.settings(), **_PLAIN, "points": points, "version": VERSION},
        inputs={"index": retriever.index, "qrels": judged},
        packages=retriever.packages,
        build=build,
    )
    return by_point(ranks.read(), points, read_parquet(queries)["qid"].to_pylist())


def by_point(data: pa.Table, points: Sequence[Point], qids: Sequence[str]) -> Values:
    """Reciprocal ranks from a table of TUNED, in the order of `qids`; a query that could not be ranked counts 0."""
    values = reciprocal_rank(shown_ranks(data["gold_rank"].to_numpy(), data["score"].to_numpy() > 0))
    found = np.zeros((len(points), len(qids)))
    place = {qid: i for i, qid in enumerate(qids)}
    found[data["point"].to_numpy(), [place[qid] for qid in data["qid"].to_pylist()]] = values
    return dict(zip(points, found, strict=True))
