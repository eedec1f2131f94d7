"""Search the composed queries of a system: exact gold rank and the 100 best passages of each."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.evaluate.runs import DEPTH
from aqe.expand.compose import compose
from aqe.observe.progress import Say
from aqe.rank.stage import RankerSource, ranker_source
from aqe.records import table
from aqe.sample.plan import batched
from aqe.units import Pool, Result, Row, run_units

#: One row a query. `search_ms` is the search of the hits alone, on a busy machine.
RETRIEVED = pa.schema(
    [
        ("qid", pa.string()),
        ("expansion", pa.string()),
        ("composed", pa.string()),
        ("gold_docid", pa.string()),
        ("gold_rank", pa.int32()),
        ("score", pa.float32()),
        ("docids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("search_ms", pa.float32()),
    ]
)


class RetrieveWorker:
    """Searches one composed query after another."""

    def __init__(self, source: RankerSource) -> None:
        self._ranker = source.open()
        self._config = source.config

    def __call__(self, rows: Sequence[Row]) -> Result:
        made: list[dict[str, Any]] = []
        dead: list[tuple[Row, str]] = []
        for row in rows:
            try:
                made.append(self._retrieve(row))
            except Exception as error:
                dead.append((row, f"{type(error).__name__}: {error}"))
        return Result(table(made, RETRIEVED), dead, {"ranks": len(made)})

    def _retrieve(self, row: Row) -> dict[str, Any]:
        config = self._config
        composed = compose(row["query"], row["expansion"], config.query_weight, config.distinct_words)
        started = time.perf_counter()
        hits = self._ranker.search(composed, DEPTH)
        seconds = time.perf_counter() - started
        gold = self._ranker.gold_ranks([composed], row["relevant"])[0]
        return {
            "qid": row["qid"],
            "expansion": row["expansion"],
            "composed": composed,
            "gold_docid": gold.docid,
            "gold_rank": gold.rank,
            "score": gold.score,
            "docids": [hit.docid for hit in hits],
            "scores": [hit.score for hit in hits],
            "search_ms": 1000 * seconds,
        }


def retrieve(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    index: Path,
    index_config: IndexConfig,
    config: RankConfig,
    pool: Pool,
    max_dead_share: float,
    say: Say,
    stage: str,
) -> dict[str, Any]:
    """Search `rows` (qid, query, expansion, relevant) into `out`/data (RETRIEVED). Needs a connection to Ray."""
    return run_units(
        stage,
        out,
        batched([dict(row) for row in rows], 32),
        schema=RETRIEVED,
        make=RetrieveWorker,
        args={"source": ranker_source(config, index, index_config, pool.labels)},
        pool=pool,
        noun="queries",
        max_dead_share=max_dead_share,
        say=say,
    )
