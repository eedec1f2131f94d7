"""The systems that are compared: where each one's expansions come from, and what the search finds for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from aqe.artifact import ANALYSIS_PACKAGES, Artifact, digest
from aqe.card import TITLES
from aqe.evaluate.baselines import Choice, choose_cut, choose_prompt, expansions
from aqe.evaluate.compare import System
from aqe.evaluate.expansions import cut
from aqe.evaluate.measures import ndcg_at_10
from aqe.evaluate.retrieve import retrieve
from aqe.nodes import nodes_of
from aqe.pipeline import Pipeline
from aqe.prefer.candidates import join
from aqe.rank.stage import ranker_pool
from aqe.sample.prompts import resolve

LABELS = {
    "bm25": "BM25, plain query",
    "zero_shot": "zero-shot, the prompt that is served",
    "zero_shot_best": "zero-shot, the best prompt on dev",
    "zero_shot_cut": "zero-shot, best prompt, cut to the best length on dev",
    **TITLES,
    "best_of_n": "best of n candidates (oracle)",
}


@dataclass(frozen=True)
class Source:
    """A system's expansions (qid -> text; a query that is absent is not covered) and what they cost and come from."""

    texts: Mapping[str, str]
    seconds_per_query: float | None = None
    note: str = ""


def sources(pipeline: Pipeline) -> tuple[dict[str, Source], dict[str, Any]]:
    """All systems of the table by name, and what was chosen for them on dev."""
    config = pipeline.config
    split = config.evaluate.split
    served = resolve(config.prompt)
    queries = pipeline.ready(split)
    best, tried_prompts = choose_prompt(pipeline)
    words, tried_cuts = choose_cut(pipeline, best)
    zero, top = pipeline.greedy(split, served), pipeline.greedy(split, best)
    short = {q: cut(t, words, config.rank.distinct_words) for q, t in expansions(top).items()}
    found = {
        "bm25": Source(dict.fromkeys(queries["qid"].to_pylist(), "")),
        "zero_shot": Source(expansions(zero), _seconds(zero), f"prompt {served.name}"),
        "zero_shot_best": Source(expansions(top), _seconds(top), f"prompt {best.name}"),
        "zero_shot_cut": Source(short, _seconds(top), f"prompt {best.name}, {words} words"),
    }
    for name in config.models:
        run = pipeline.greedy(split, served, name)
        found[name] = Source(expansions(run), _seconds(run), f"prompt {served.name}")
    if config.evaluate.oracle_queries != 0:
        found["best_of_n"] = _oracle(pipeline)
    choices = {"zero_shot_best": _tried(tried_prompts), "zero_shot_cut": _tried(tried_cuts)}
    return found, choices


def _tried(choice: Choice) -> dict[str, Any]:
    return {"chosen": choice.best, "dev_mrr": dict(choice.tried)}


def _seconds(run: Artifact) -> float:
    """Seconds of one worker for one query, in batches."""
    return float(run.stats["busy_seconds"] / max(run.stats["rows_in"], 1))


def _oracle(pipeline: Pipeline) -> Source:
    """The best-ranked candidate of each query: what a perfect choice among n would give."""
    config = pipeline.config
    split = config.evaluate.split
    samples = pipeline.candidates(split, config.evaluate.oracle_queries)
    ranks = pipeline.ranks(split, samples, f"rank_{split}")
    prompts = dict.fromkeys(samples.read()["qid"].to_pylist(), "")
    judged = join(prompts, samples.read(), ranks.read(), config.prefer)
    best = {j.qid: j.best_first()[0].expansion for j in judged}
    note = f"{config.sample.num_samples} candidates, the best chosen by its true rank"
    return Source(best, _seconds(samples), note)


def search(pipeline: Pipeline, name: str, source: Source, queries: pa.Table, qrels: pa.Table) -> Artifact:
    """Search a system's composed queries."""
    config = pipeline.config
    relevant: dict[str, list[str]] = {}
    for qid, docid, grade in zip(*(qrels[c].to_pylist() for c in ("qid", "docid", "relevance")), strict=True):
        if grade > 0:
            relevant.setdefault(qid, []).append(docid)
    rows = [
        {"qid": qid, "query": text, "expansion": source.texts[qid], "relevant": relevant[qid]}
        for qid, text in zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True)
        if qid in source.texts
    ]
    stage = f"search_{name}"
    return pipeline.make(
        stage,
        config={
            **config.rank.model_dump(include={"engine", "query_weight", "distinct_words"}),
            **config.index.model_dump(include={"k1", "b"}),
        },
        inputs={"index": pipeline.ranking_index, "queries": digest(rows)},
        packages=ANALYSIS_PACKAGES,
        build=lambda out: retrieve(
            out,
            rows,
            index=pipeline.ranking_index.path,
            index_config=config.index,
            config=config.rank,
            pool=ranker_pool(config.rank, config.index, nodes_of("cpu")),
            max_dead_share=config.max_dead_share,
            say=pipeline.say,
            stage=stage,
        ),
    )


def hits(found: Artifact) -> dict[str, list[tuple[str, float]]]:
    data = found.read()
    columns = (data[c].to_pylist() for c in ("qid", "docids", "scores"))
    return {qid: list(zip(docids, scores, strict=True)) for qid, docids, scores in zip(*columns, strict=True)}


def system(name: str, source: Source, found: Artifact, queries: pa.Table, qrels: pa.Table) -> System:
    data = found.read()
    qids = data["qid"].to_pylist()
    place = {qid: i for i, qid in enumerate(queries["qid"].to_pylist())}
    everything = len(qids) == len(place)
    search = float(np.mean(data["search_ms"].to_numpy())) / 1000
    return System(
        name,
        LABELS[name],
        data["gold_rank"].to_numpy().astype(np.int32),
        ndcg_at_10(hits(found), qrels, qids),
        expansions=None if name == "bm25" else data["expansion"].to_pylist(),
        search_ms=data["search_ms"].to_numpy(),
        index=None if everything else np.array([place[qid] for qid in qids], dtype=np.int64),
        seconds_per_query=search + (source.seconds_per_query or 0.0),
        note=source.note,
    )
