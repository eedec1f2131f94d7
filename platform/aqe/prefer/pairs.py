"""Preference pairs: the best candidate against the worst, the second best against the second worst, and so on."""

import math
from collections.abc import Sequence
from typing import Any

from aqe.config.rank import PreferConfig
from aqe.prefer.candidates import Candidate, Judged
from aqe.prefer.select import eligible


def margin(better: int, worse: int, config: PreferConfig) -> float:
    """What a pair's ranks are apart in the configured reward: log2 of the rank, or the reciprocal rank."""
    if config.reward == "rank":
        return math.log2(worse) - math.log2(better)
    return 1 / better - 1 / worse


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each text once, where it first stands: with several pairs a query no text is chosen, or rejected, twice."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.raw, candidate)
    return list(first.values())


def dpo_rows(judged: Judged, config: PreferConfig) -> list[dict[str, Any]]:
    """Rows of records.DPO, at most `pairs_per_query`; none where all candidates rank alike."""
    rows = []
    # Sorted, so that the likeliest of equal texts is kept.
    best, worst = _distinct(eligible(judged, config)), _distinct(judged.worst_first())
    for chosen, rejected in zip(best[: config.pairs_per_query], worst, strict=False):
        # Both lists are sorted: once a pair is not apart, none after it is.
        if chosen.rank >= rejected.rank or margin(chosen.rank, rejected.rank, config) < config.min_margin:
            break
        rows.append(
            {
                "qid": judged.qid,
                "prompt": judged.prompt,
                "chosen": chosen.raw,
                "rejected": rejected.raw,
                "chosen_finished": chosen.finished,
                "rejected_finished": rejected.finished,
                "chosen_rank": chosen.rank,
                "rejected_rank": rejected.rank,
            }
        )
    return rows
