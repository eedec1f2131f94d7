"""Rejection sampling: the best-ranked candidate of each query is what RSFT learns."""

from typing import Any

from aqe.config.rank import PreferConfig
from aqe.prefer.candidates import Candidate, Judged, may_be_chosen


def eligible(judged: Judged, config: PreferConfig) -> list[Candidate]:
    """Candidates that may be chosen, best first; none where `only_if_better_than_plain` asks for more."""
    best = [c for c in judged.best_first() if may_be_chosen(c, config)]
    if config.only_if_better_than_plain and best and judged.value(best[0]) <= judged.plain_value:
        return []
    return best


def rsft_row(judged: Judged, config: PreferConfig) -> dict[str, Any] | None:
    """A row of records.RSFT, or None when no candidate may be chosen."""
    best = eligible(judged, config)
    if not best or (config.rsft_only_with_pair and judged.value(best[0]) == judged.value(judged.worst_first()[0])):
        return None
    return {
        "qid": judged.qid,
        "prompt": judged.prompt,
        "completion": best[0].raw,
        "finished": best[0].finished,
        "gold_rank": best[0].rank,
        "plain_rank": judged.plain_rank,
    }
