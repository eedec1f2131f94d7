"""What the actors of a pool do with a query and its expansions: exact gold ranks of all, or a search with one."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from aqe.artifact import Slices, read_parquet
from aqe.compose import compose
from aqe.config.rank import RankConfig
from aqe.observe import metrics
from aqe.ranker import DEPTH, GoldRank, Hit, Ranker, ndcg
from aqe.records import EXPANSIONS, PLAIN, RANKS, SEARCHED, table
from aqe.units import Result, Row, Unit


class QueryReader:
    """One row a query of a unit: qid, query, its expansions by sample_idx, its relevant passages with their grades.

    A query without any expansion in the files of the stage `expansions` is left out: it was not sampled, or not asked
    for. Where that is None, every query has the empty one.
    """

    def __init__(self, queries: Path, expansions: Path | None) -> None:
        self._rows = Slices(queries)
        self._expansions = expansions
        self._held: tuple[str, dict[str, tuple[list[int], list[str]]]] = "", {}

    def __call__(self, unit: Unit) -> list[Row]:
        rows: list[Row] = []
        texts = self._texts(unit)
        for query in self._rows(unit.start, unit.stop).to_pylist():
            own = ([0], [""]) if self._expansions is None else texts.get(query["qid"])
            if own is not None:
                asked = {"qid": query["qid"], "query": query["text"], "sample_idx": own[0], "expansions": own[1]}
                judged = {name: query[name] or [] for name in ("relevant", "grades", "excluded")}
                rows.append({**asked, **judged})
        return rows

    def _texts(self, unit: Unit) -> dict[str, tuple[list[int], list[str]]]:
        """qid -> numbers and texts of its expansions, from the unit's files. The last file is kept: units share one."""
        if self._expansions is None:
            return {}
        texts: dict[str, tuple[list[int], list[str]]] = {}
        for name in unit.files["expansions"]:
            if name != self._held[0]:
                self._held = name, _by_query(read_parquet(self._expansions / name))
            texts |= self._held[1]
        return texts


def _by_query(expansions: pa.Table) -> dict[str, tuple[list[int], list[str]]]:
    texts: dict[str, tuple[list[int], list[str]]] = {}
    for qid, i, text in zip(*(expansions[name].to_pylist() for name in EXPANSIONS.names), strict=True):
        numbers, own = texts.setdefault(qid, ([], []))
        numbers.append(i)
        own.append(text)
    return texts


def gold_ranks(ranker: Ranker, texts: Sequence[str], row: Row) -> list[GoldRank]:
    """Gold ranks of a query's texts in the ranking without its `excluded` passages, which are in the index."""
    ranks = ranker.gold_ranks(texts, row["relevant"])
    if not row["excluded"]:
        return ranks
    others = [ranker.gold_ranks(texts, [docid]) for docid in row["excluded"]]
    # What is not found stands behind the whole index, which is smaller without them.
    before = [sum(not rank.found or of[i].rank < rank.rank for of in others) for i, rank in enumerate(ranks)]
    return [rank._replace(rank=rank.rank - less) for rank, less in zip(ranks, before, strict=True)]


def search(ranker: Ranker, text: str, k: int, row: Row) -> list[Hit]:
    """The k best passages but for those that the query's ranking is without."""
    excluded = set(row["excluded"])
    hits = ranker.search(text, k + len(excluded))
    return [hit for hit in hits if hit.docid not in excluded][:k] if excluded else hits


class _Worker(ABC):
    """A query that it cannot rank is a dead letter."""

    schema: ClassVar[pa.Schema]

    def __init__(self, ranker: Ranker, config: RankConfig, stage: str) -> None:
        metrics.begin(metrics.RANKS, stage=stage)
        self._ranker = ranker
        self._config = config
        self._stage = stage

    def __call__(self, rows: Sequence[Row]) -> Result:
        results: list[dict[str, Any]] = []
        dead: list[tuple[Row, str]] = []
        for row in rows:
            try:
                results += self._work(row)
            except Exception as error:
                dead.append((row, f"{type(error).__name__}: {error}"))
        metrics.count(metrics.RANKS, len(results), stage=self._stage)
        return Result(table(results, self.schema), dead, {"ranks": len(results)})

    @abstractmethod
    def _work(self, row: Row) -> list[dict[str, Any]]:
        """What becomes of one query: rows of `schema`."""

    def _compose(self, row: Row, expansion: str) -> str:
        return compose(row["query"], expansion, self._config.query_weight, self._config.distinct_words)


class RankWorker(_Worker):
    """Ranks the plain query and each of its candidates: records.RANKS."""

    schema = RANKS

    def _work(self, row: Row) -> list[dict[str, Any]]:
        composed = [self._compose(row, expansion) for expansion in ["", *row["expansions"]]]
        # The same text has the same rank: duplicates are searched once.
        texts = list(dict.fromkeys(composed))
        ranks = dict(zip(texts, gold_ranks(self._ranker, texts, row), strict=True))
        grades = dict(zip(row["relevant"], row["grades"], strict=True))
        depth = self._config.ndcg_at
        gains = {text: ndcg(search(self._ranker, text, depth, row), grades, depth) for text in texts} if depth else {}
        return [
            {
                "qid": row["qid"],
                "sample_idx": sample_idx,
                "gold_docid": ranks[text].docid,
                "gold_rank": ranks[text].rank,
                "score": ranks[text].score,
                "ndcg": gains.get(text),
            }
            for sample_idx, text in zip([PLAIN, *row["sample_idx"]], composed, strict=True)
        ]


class SearchWorker(_Worker):
    """Searches with a query's one expansion: records.SEARCHED."""

    schema = SEARCHED

    def _work(self, row: Row) -> list[dict[str, Any]]:
        (expansion,) = row["expansions"]
        composed = self._compose(row, expansion)
        started = time.perf_counter()
        hits = search(self._ranker, composed, DEPTH, row)
        seconds = time.perf_counter() - started
        gold = gold_ranks(self._ranker, [composed], row)[0]
        return [
            {
                "qid": row["qid"],
                "expansion": expansion,
                "composed": composed,
                "gold_docid": gold.docid,
                "gold_rank": gold.rank,
                "score": gold.score,
                "docids": [hit.docid for hit in hits],
                "scores": [hit.score for hit in hits],
                "search_ms": 1000 * seconds,
            }
        ]
