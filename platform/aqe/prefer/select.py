"""Rejection sampling: the best-ranked candidate of each query is what RSFT learns."""

import random
from typing import Any

from aqe.config.rank import PreferConfig
from aqe.prefer.candidates import Candidate, RankedQuery, may_be_chosen


def eligible(ranked: RankedQuery, config: PreferConfig) -> list[Candidate]:
    """Candidates that may be chosen, best first; none where `only_if_better_than_plain` asks for more."""
    best = [c for c in ranked.best_first() if may_be_chosen(c, config)]
    if config.only_if_better_than_plain and best and ranked.value(best[0]) <= ranked.value(ranked.plain):
        return []
    return best


def rsft_row(ranked: RankedQuery, config: PreferConfig) -> dict[str, Any] | None:
    """A row of records.RSFT, or None when no candidate may be chosen."""
    best = eligible(ranked, config)
    if not best or (config.rsft_only_with_pair and ranked.value(best[0]) == ranked.value(ranked.worst_first()[0])):
        return None
    return _row(ranked, best[0])


def random_row(ranked: RankedQuery, config: PreferConfig) -> dict[str, Any] | None:
    """A row of records.RSFT for the same queries with any candidate that may be chosen: what selection must beat.

    Drawn by the query's id, so that it is the same one every time.
    """
    if rsft_row(ranked, config) is None:
        return None
    allowed = sorted((c for c in ranked.sampled if may_be_chosen(c, config)), key=lambda c: c.sample_idx)
    return _row(ranked, random.Random(ranked.qid).choice(allowed)) if allowed else None


def _row(ranked: RankedQuery, target: Candidate) -> dict[str, Any]:
    return {
        "qid": ranked.qid,
        "prompt": ranked.prompt.text,
        "completion": target.raw,
        "prompt_ids": ranked.prompt.ids,
        "completion_ids": target.ids,
        "finished": target.finished,
        "gold_rank": target.rank,
        "plain_rank": ranked.plain.rank,
    }
