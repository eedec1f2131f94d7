"""Rejection sampling: the best-ranked candidate of each query is what RSFT learns."""

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
    return {
        "qid": ranked.qid,
        "prompt": ranked.prompt.text,
        "completion": best[0].raw,
        "prompt_ids": ranked.prompt.ids,
        "completion_ids": best[0].ids,
        "finished": best[0].finished,
        "gold_rank": best[0].rank,
        "plain_rank": ranked.plain.rank,
    }
