"""A query's candidates with their ranks, in the order of preference."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from aqe.config.rank import PreferConfig
from aqe.prefer.reward import REWARDS, Reward, by_rank
from aqe.rank.stage import PLAIN


@dataclass(frozen=True)
class Candidate:
    """One thing the model wrote for a query, and where it puts the true passage."""

    sample_idx: int
    raw: str
    expansion: str
    finished: bool
    logprob_per_token: float
    rank: int
    ndcg: float = math.nan


@dataclass(frozen=True)
class Judged:
    """A query with all its candidates."""

    qid: str
    prompt: str
    plain_rank: int
    candidates: tuple[Candidate, ...]
    reward: Reward = by_rank
    plain_ndcg: float = math.nan

    def value(self, candidate: Candidate) -> float:
        """The candidate's reward."""
        return self.reward(candidate.rank, candidate.ndcg)

    @property
    def plain_value(self) -> float:
        """The plain query's reward."""
        return self.reward(self.plain_rank, self.plain_ndcg)

    @property
    def sampled(self) -> list[Candidate]:
        """What the model wrote: without the plain query."""
        return [c for c in self.candidates if c.sample_idx != PLAIN]

    def best_first(self) -> list[Candidate]:
        """By reward, then by rank; equals by log-probability per token, the likelier first; then by sample_idx."""
        return sorted(self.candidates, key=lambda c: (-self.value(c), c.rank, -c.logprob_per_token, c.sample_idx))

    def worst_first(self) -> list[Candidate]:
        """By reward, worst first; of equals the likelier first: unlearning what is never said changes little."""
        return sorted(self.candidates, key=lambda c: (self.value(c), -c.rank, -c.logprob_per_token, c.sample_idx))


def join(prompts: dict[str, str], samples: pa.Table, ranks: pa.Table, config: PreferConfig) -> Iterator[Judged]:
    """Queries of `prompts` (qid -> prompt that trains, in its order) that have candidates and ranks.

    With `include_plain` the plain query competes as the empty expansion, which ends at once. It has no log-probability;
    it stands after its equals, because saying something is the rule.
    """
    ranked = dict(
        zip(
            zip(ranks["qid"].to_pylist(), ranks["sample_idx"].to_pylist(), strict=True),
            zip(ranks["gold_rank"].to_pylist(), ranks["ndcg"].to_pylist(), strict=True),
            strict=True,
        )
    )
    candidates: dict[str, list[Candidate]] = {}
    for row in samples.to_pylist():
        found = ranked.get((row["qid"], row["sample_idx"]))
        if found is not None:
            candidates.setdefault(row["qid"], []).append(
                Candidate(
                    row["sample_idx"],
                    row["raw"],
                    row["expansion"],
                    row["finish_reason"] == "stop",
                    row["logprob"] / max(row["num_tokens"], 1),
                    *_measured(found),
                )
            )
    for qid, prompt in prompts.items():
        if qid in candidates:
            rank, ndcg = _measured(ranked[(qid, PLAIN)])
            extra = [Candidate(PLAIN, "", "", True, -math.inf, rank, ndcg)] if config.include_plain else []
            yield Judged(qid, prompt, rank, tuple(candidates[qid] + extra), REWARDS[config.reward], ndcg)


def _measured(found: tuple[int, float | None]) -> tuple[int, float]:
    rank, ndcg = found
    return rank, math.nan if ndcg is None else ndcg


def may_be_chosen(candidate: Candidate, config: PreferConfig) -> bool:
    """Whether a candidate may be a target: see `allow_truncated`, `allow_empty`, `include_plain`."""
    if candidate.sample_idx == PLAIN:
        return True
    return (candidate.finished or config.allow_truncated) and (bool(candidate.expansion) or config.allow_empty)
