"""The systems that are compared: where each one's expansions come from, and what the search found for them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aqe.artifact import Artifact
from aqe.evaluate.compare import System
from aqe.evaluate.evidence import Evidence
from aqe.evaluate.measures import ndcg_at_10
from aqe.evaluate.stage import finished, note, seconds_per_query
from aqe.evaluate.tune import Tuned
from aqe.ranker import Hit

#: How tables and cards call a system.
LABELS = {
    "bm25": "BM25, plain query",
    "bm25_tuned": "BM25, tuned on dev",
    "bm25_rm3": "BM25 + RM3",
    "zero_shot": "zero-shot, the prompt that is served",
    "zero_shot_best": "zero-shot, the best prompt on dev",
    "zero_shot_cut": "zero-shot, best prompt, cut to the best length on dev",
    "union": "union of candidates",
    "filtered": "n candidates, one chosen by a trained filter",
    "rsft_random": "RSFT on a random candidate",
    "rsft": "RSFT",
    "dpo": "DPO",
    "rsft_dpo": "RSFT + DPO",
    "best_of_n": "best of n candidates (oracle)",
}
#: What stands for `bm25_tuned` where there were too few queries to choose by.
NOT_TUNED = "BM25, not tuned"


def systems(evidence: Evidence, queries: pa.Table, qrels: pa.Table) -> list[System]:
    """All systems in the order of the evidence."""
    made = []
    for name, searched in evidence.searched.items():
        found = [one.read() for one in searched]
        # A query that one seed could not be asked (a dead letter) is left out of all.
        there = set.intersection(*(set(data["qid"].to_pylist()) for data in found))
        found = [data.filter(pc.is_in(data["qid"], value_set=pa.array(sorted(there)))) for data in found]
        written = evidence.expansions[name]
        first, *others = (_system(name, *of, queries, qrels) for of in zip(found, written, strict=True))
        choice = evidence.choices.get(name)
        if isinstance(choice, Tuned):
            first = replace(first, note=choice.why, label=first.label if choice.mrr else NOT_TUNED)
        made.append(replace(first, others=tuple(others)))
    return made


def _system(name: str, data: pa.Table, expansions: Artifact | None, queries: pa.Table, qrels: pa.Table) -> System:
    """One system as one search found it."""
    qids = data["qid"].to_pylist()
    place = {qid: i for i, qid in enumerate(queries["qid"].to_pylist())}
    everything = len(qids) == len(place)
    search = float(np.mean(data["search_ms"].to_numpy())) / 1000
    return System(
        name,
        LABELS[name],
        data["gold_rank"].to_numpy().astype(np.int32),
        data["score"].to_numpy() > 0,
        ndcg_at_10(hits(data), qrels, qids),
        expansions=None if expansions is None else data["expansion"].to_pylist(),
        search_ms=data["search_ms"].to_numpy(),
        index=None if everything else np.array([place[qid] for qid in qids], dtype=np.int64),
        seconds_per_query=search + (0.0 if expansions is None else seconds_per_query(expansions)),
        note="" if expansions is None else note(expansions),
        cut=name == "bm25_rm3",
        finished=None if expansions is None else finished(expansions),
    )


def hits(searched: pa.Table) -> Mapping[str, list[Hit]]:
    """qid -> the best passages (records.SEARCHED)."""
    columns = (searched[name].to_pylist() for name in ("qid", "docids", "scores"))
    return {qid: [*map(Hit, docids, scores)] for qid, docids, scores in zip(*columns, strict=True)}
