"""The stage that ranks: candidates -> exact gold ranks, on a pool of CPU actors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.expand.compose import compose
from aqe.index import jvm
from aqe.index.analysis import needs_java, query_analyzer
from aqe.nodes import Nodes
from aqe.observe import metrics
from aqe.observe.progress import Say
from aqe.rank.ranker import Ranker, ndcg
from aqe.records import RANKS, table
from aqe.sample.plan import batched
from aqe.units import Pool, Result, Row, run_units

#: The plain query's place among the candidates.
PLAIN = -1


@dataclass(frozen=True)
class RankerSource:
    """Where a worker's ranker comes from: the artifact of build_impacts or build_index, or shards spread over nodes."""

    config: RankConfig
    index: Path
    index_config: IndexConfig
    shards: Any = None

    def open(self) -> Ranker:
        """The engine that `rank.engine` names."""
        if self.config.engine == "lucene":
            from aqe.rank.lucene import LuceneRanker

            return LuceneRanker(self.index / "lucene", self.index_config)
        from aqe.rank.gold import GoldRanker, open_gold_ranker

        if self.shards is not None:
            return GoldRanker([self.shards], query_analyzer(self.index_config.language, self.index_config.jvm_heap))
        return open_gold_ranker(self.index, self.index_config)


def ranker_source(
    config: RankConfig, index: Path, index_config: IndexConfig, labels: Mapping[str, str] | None = None
) -> RankerSource:
    """What the workers of a pool open; with `rank.spread_shards` the shards' actors start here, on `labels`' nodes."""
    if config.engine == "impacts" and config.spread_shards:
        from aqe.rank.spread import spread_shards

        return RankerSource(config, index, index_config, spread_shards(index, index_config, labels or {}))
    return RankerSource(config, index, index_config)


class RankWorker:
    """Ranks a unit of queries, each with all its candidates."""

    def __init__(self, source: RankerSource, stage: str) -> None:
        self._ranker = source.open()
        self._config = source.config
        self._stage = stage

    def __call__(self, rows: Sequence[Row]) -> Result:
        made: list[dict[str, Any]] = []
        dead: list[tuple[Row, str]] = []
        for row in rows:
            try:
                made += self._rank(row)
            except Exception as error:
                dead.append((row, f"{type(error).__name__}: {error}"))
        metrics.count(metrics.RANKS, len(made), self._stage)
        return Result(table(made, RANKS), dead, {"ranks": len(made)})

    def _rank(self, row: Row) -> list[dict[str, Any]]:
        config = self._config
        composed = [
            compose(row["query"], expansion, config.query_weight, config.distinct_words)
            for expansion in ["", *row["expansions"]]
        ]
        # The same text has the same rank: duplicates are searched once.
        texts = list(dict.fromkeys(composed))
        ranks = dict(zip(texts, self._ranker.gold_ranks(texts, row["relevant"]), strict=True))
        grades = dict(zip(row["relevant"], row["grades"], strict=True))
        depth = config.ndcg_at
        gains = {text: ndcg(self._ranker.search(text, depth), grades, depth) for text in texts} if depth else {}
        made = []
        for i, text in enumerate(composed):
            gold = ranks[text]
            sample_idx = PLAIN if i == 0 else row["sample_idx"][i - 1]
            made.append(
                {
                    "qid": row["qid"],
                    "sample_idx": sample_idx,
                    "gold_docid": gold.docid,
                    "gold_rank": gold.rank,
                    "score": gold.score,
                    "ndcg": gains.get(text),
                }
            )
        return made


def rank_rows(queries: pa.Table, qrels: pa.Table, samples: pa.Table) -> list[dict[str, Any]]:
    """One row a query that has a relevant passage: text, candidates, relevant passages; in the queries' order."""
    relevant: dict[str, dict[str, int]] = {}
    for qid, docid, grade in zip(*(qrels[c].to_pylist() for c in ("qid", "docid", "relevance")), strict=True):
        if grade > 0:
            relevant.setdefault(qid, {})[docid] = grade
    candidates: dict[str, tuple[list[int], list[str]]] = {}
    for qid, i, text in zip(*(samples[c].to_pylist() for c in ("qid", "sample_idx", "expansion")), strict=True):
        indices, texts = candidates.setdefault(qid, ([], []))
        indices.append(i)
        texts.append(text)
    rows = []
    for qid, text in zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True):
        # A query whose sampling failed is in the dead letters of that stage; it has nothing to rank.
        if qid in relevant and qid in candidates:
            indices, texts = candidates[qid]
            judged = {"relevant": list(relevant[qid]), "grades": list(relevant[qid].values())}
            rows.append({"qid": qid, "query": text, "sample_idx": indices, "expansions": texts, **judged})
    return rows


def rank_expansions(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    index: Path,
    index_config: IndexConfig,
    config: RankConfig,
    pool: Pool,
    max_dead_share: float,
    say: Say,
    stage: str = "rank",
) -> dict[str, Any]:
    """Rank the plain query and each candidate of `rows` (see rank_rows) into `out`/data (records.RANKS).

    Needs a connection to Ray. Returns counts and rates.
    """
    stats = run_units(
        stage,
        out,
        batched([dict(row) for row in rows], config.queries_per_unit),
        schema=RANKS,
        make=RankWorker,
        args={"source": ranker_source(config, index, index_config, pool.labels), "stage": stage},
        pool=pool,
        noun="queries",
        max_dead_share=max_dead_share,
        say=say,
    )
    return {"engine": config.engine, **stats}


def ranker_pool(config: RankConfig, index_config: IndexConfig, nodes: Nodes) -> Pool:
    """One actor a CPU core, with what a JVM needs inside Ray where the engine or the language wants one."""
    java = config.engine == "lucene" or needs_java(index_config.language)
    workers = config.workers or sum(nodes.cpus)
    return Pool(workers, num_cpus=0.9, env=jvm.ray_env() if java else {}, labels=nodes.labels)
