"""Measures of a query: from its exact gold rank, and nDCG@10 from its hits.

All are fractions in [0, 1]. Ranks are 1-based and exact to any depth, so `mrr` is never cut; `rr_100` is what a run
file of 100 hits can show of it, `rr_1000` what a list that is cut there can. A passage that is not found (score 0) is
no hit at any depth, and its reciprocal rank is 0, whatever number stands for its rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aqe.errors import InputError
from aqe.evaluate.runs import strict_scores
from aqe.ranker import Hit

TOP_K = (1, 5, 20, 100)
MEASURES = (*(f"top_{k}" for k in TOP_K), "mrr", "rr_100", "rr_1000", "ndcg_10")
#: How a measure is called in tables, in the order of their columns (the cut ones stay in the JSON file).
COLUMNS = {
    "top_1": "top-1",
    "top_5": "top-5",
    "top_20": "top-20",
    "top_100": "top-100",
    "mrr": "MRR",
    "ndcg_10": "nDCG@10",
}


def shown_ranks(ranks: NDArray[np.integer[Any]], found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Where a result list shows the best relevant passage: its gold rank, infinity where it is not found.

    Shape (queries,). `found`: its score is above 0.
    """
    return np.where(found, ranks, np.inf)


def top_k(shown: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """1 where the best relevant passage is among the first `k`, else 0. Shape (queries,), of `shown_ranks`."""
    return (shown <= k).astype(np.float64)


def reciprocal_rank(shown: NDArray[np.float64], cut: int | None = None) -> NDArray[np.float64]:
    """1 / rank, exact; 0 where not found, and beyond `cut` where one is given. Shape (queries,), of `shown_ranks`."""
    values = 1.0 / shown
    return values if cut is None else np.where(shown <= cut, values, 0.0)


def per_query(
    ranks: NDArray[np.integer[Any]], found: NDArray[np.bool_], ndcg: NDArray[np.floating[Any]]
) -> dict[str, NDArray[np.float64]]:
    """Every measure of every query, keyed as in `MEASURES`; arrays have shape (queries,).

    Raises InputError when a rank is below 1 or the arrays do not fit: a query without any relevant passage must have
    been left out before.
    """
    ranks = np.asarray(ranks)
    if not ranks.shape == np.shape(found) == np.shape(ndcg) or ranks.ndim != 1:
        raise InputError(
            f"{ranks.shape} gold ranks, {np.shape(found)} times found or not, {np.shape(ndcg)} nDCG values: there must "
            "be one of each a query"
        )
    if ranks.size and int(ranks.min()) < 1:
        raise InputError(f"gold rank {int(ranks.min())} at position {int(ranks.argmin())}: ranks start at 1")
    shown = shown_ranks(ranks, found)
    return {
        **{f"top_{k}": top_k(shown, k) for k in TOP_K},
        "mrr": reciprocal_rank(shown),
        "rr_100": reciprocal_rank(shown, 100),
        "rr_1000": reciprocal_rank(shown, 1000),
        "ndcg_10": np.asarray(ndcg, dtype=np.float64),
    }


def ndcg_at_10(hits: Mapping[str, Sequence[Hit]], qrels: pa.Table, qids: Sequence[str]) -> NDArray[np.float64]:
    """nDCG@10 as ir-measures (trec_eval) computes it, in the order of `qids`. Shape (queries,).

    `hits` are in the order of the tie rule; `qrels` has the columns of `records.QRELS` and may name several relevant
    passages a query. A query without hits scores 0. Raises InputError for a qid without a judgement.
    """
    # Part of the extra `ray`: who only looks at a report needs none of it.
    import ir_measures

    wanted = set(qids)
    judged = [
        ir_measures.Qrel(q, d, r)
        for q, d, r in zip(*(qrels[c].to_pylist() for c in ("qid", "docid", "relevance")), strict=True)
        if q in wanted
    ]
    missing = wanted - {q.query_id for q in judged}
    if missing:
        raise InputError(
            f"{len(missing)} queries have no judgement, for instance {min(missing)!r}: leave them out first"
        )
    scored = [
        ir_measures.ScoredDoc(qid, docid, float(score))
        for qid in wanted & hits.keys()
        for (docid, _), score in zip(hits[qid], strict_scores([s for _, s in hits[qid]]), strict=True)
    ]
    values = {m.query_id: float(m.value) for m in ir_measures.iter_calc([ir_measures.nDCG @ 10], judged, scored)}
    return np.array([values.get(qid, 0.0) for qid in qids], dtype=np.float64)
