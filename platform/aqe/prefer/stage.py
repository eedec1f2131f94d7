"""The stage that prefers: samples and ranks -> RSFT and DPO sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aqe.artifact import write_parquet
from aqe.config.rank import PreferConfig
from aqe.errors import InputError
from aqe.observe.progress import Say
from aqe.prefer.candidates import Judged, join
from aqe.prefer.diversity import collapse_warning, diversity
from aqe.prefer.pairs import dpo_rows
from aqe.prefer.select import rsft_row
from aqe.records import DPO, RSFT, table


def build_preferences(
    out: Path, prompts: dict[str, str], samples: pa.Table, ranks: pa.Table, config: PreferConfig, say: Say
) -> dict[str, Any]:
    """Write `out`/rsft.parquet (records.RSFT) and `out`/dpo.parquet (records.DPO), in the order of `prompts`.

    `prompts` maps each qid to the prompt that trains. Returns how many queries gave a target and a pair, what the best
    candidate gains over the plain query, and how diverse the candidates are.
    """
    rsft: list[dict[str, Any]] = []
    dpo: list[dict[str, Any]] = []
    texts: dict[str, list[str]] = {}
    judged_all: list[Judged] = []
    for judged in join(prompts, samples, ranks, config):
        judged_all.append(judged)
        texts[judged.qid] = [c.expansion for c in judged.sampled]
        if (row := rsft_row(judged, config)) is not None:
            rsft.append(row)
        dpo += dpo_rows(judged, config)
    if not judged_all:
        raise InputError(
            f"none of the {len(prompts)} training queries has candidates and ranks: see the dead letters of the stages "
            "before."
        )
    write_parquet(table(rsft, RSFT), out / "rsft.parquet")
    write_parquet(table(dpo, DPO), out / "dpo.parquet")
    stats: dict[str, Any] = {
        "queries": len(judged_all),
        "queries_without_candidates": len(prompts) - len(judged_all),
        "rsft_rows": len(rsft),
        "dpo_pairs": len(dpo),
        "queries_with_pair": len({row["qid"] for row in dpo}),
        **_gain(judged_all),
        **diversity(texts),
    }
    say(
        f"build_preferences: {stats['queries_with_pair']} of {stats['queries']} queries gave a pair, {len(rsft)} a "
        f"target; the best candidate beats the plain query on {100 * stats['best_beats_plain']:.0f} % of them "
        f"(MRR {stats['plain_mrr']:.3f} -> {stats['best_mrr']:.3f}); mean cosine of candidates "
        f"{_shown(stats['mean_pairwise_cosine'])}, distinct-1 {_shown(stats['distinct_1'])}"
    )
    if warning := collapse_warning(stats):
        say(f"WARNING: {warning}")
    return stats


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _gain(judged: list[Judged]) -> dict[str, float]:
    """Plain query, mean candidate and best candidate; fractions and MRR."""
    plain = np.array([j.plain_rank for j in judged])
    best = np.array([min(c.rank for c in j.sampled) for j in judged])
    mean = np.array([np.mean([1 / c.rank for c in j.sampled]) for j in judged])
    return {
        "plain_mrr": round(float((1 / plain).mean()), 5),
        "candidate_mrr": round(float(mean.mean()), 5),
        "best_mrr": round(float((1 / best).mean()), 5),
        "best_beats_plain": round(float((best < plain).mean()), 5),
    }
