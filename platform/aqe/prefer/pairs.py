"""Preference pairs: the best candidate against the worst, the second best against the second worst, and so on."""

from collections.abc import Sequence
from typing import Any

from aqe.config.rank import PreferConfig
from aqe.prefer.candidates import Candidate, RankedQuery
from aqe.prefer.select import eligible


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each text once, where it first stands: with several pairs a query no text is chosen, or rejected, twice."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.raw, candidate)
    return list(first.values())


def dpo_rows(ranked: RankedQuery, config: PreferConfig) -> list[dict[str, Any]]:
    """Rows of records.DPO, at most `pairs_per_query`; none where all candidates are worth the same."""
    rows = []
    # Sorted, so that the likeliest of equal texts is kept.
    best, worst = _distinct(eligible(ranked, config)), _distinct(ranked.worst_first())
    for chosen, rejected in zip(best[: config.pairs_per_query], worst, strict=False):
        # Both lists are sorted: once a pair is not apart, none after it is.
        apart = ranked.value(chosen) - ranked.value(rejected)
        if apart <= 0 or apart < config.min_margin:
            break
        rows.append(
            {
                "qid": ranked.qid,
                "prompt": ranked.prompt.text,
                "chosen": chosen.raw,
                "rejected": rejected.raw,
                "prompt_ids": ranked.prompt.ids,
                "chosen_ids": chosen.ids,
                "rejected_ids": rejected.ids,
                "chosen_finished": chosen.finished,
                "rejected_finished": rejected.finished,
                "chosen_rank": chosen.rank,
                "rejected_rank": rejected.rank,
            }
        )
    return rows
