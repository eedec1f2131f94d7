"""A query's candidates with their ranks, in the order of preference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aqe.compose import repeats
from aqe.config.rank import PreferConfig
from aqe.endings import completion_ids
from aqe.prefer.reward import REWARDS, Reward, by_rank
from aqe.records import PLAIN


@dataclass(frozen=True)
class Prompt:
    """The prompt that trains: its text, its token ids as the engines read them, and the token that ends an answer to
    it (see aqe.endings.taught_end)."""

    text: str
    ids: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class Candidate:
    """One thing the model wrote for a query, and where it puts the true passage, if it finds it at all."""

    sample_idx: int
    raw: str
    ids: tuple[int, ...]
    """Token ids that are trained on (see aqe.endings.completion_ids)."""
    expansion: str
    finished: bool
    logprob: float
    """Of all its tokens, in nats."""
    tokens: int
    rank: int
    found: bool
    ndcg: float

    @property
    def logprob_per_token(self) -> float:
        return self.logprob / max(self.tokens, 1)

    @property
    def repeats(self) -> int:
        """Words that it says again."""
        return repeats(self.expansion)


@dataclass(frozen=True)
class RankedQuery:
    """A query with all its candidates; `plain`, the query without expansion, need not be one of them."""

    qid: str
    prompt: Prompt
    plain: Candidate
    candidates: tuple[Candidate, ...]
    reward: Reward = by_rank
    depth: int | None = None
    """Ranks beyond it are all alike, as if nothing were found; None tells all ranks apart."""

    def value(self, candidate: Candidate) -> float:
        """The candidate's reward."""
        if self.depth is None or candidate.rank <= self.depth:
            return self.reward(candidate.rank, candidate.found, candidate.ndcg)
        return self.reward(self.depth + 1, False, candidate.ndcg)

    def place(self, candidate: Candidate) -> int:
        """Its rank, as far as ranks are told apart."""
        return candidate.rank if self.depth is None else min(candidate.rank, self.depth + 1)

    @property
    def sampled(self) -> list[Candidate]:
        """What the model wrote: without the plain query."""
        return [c for c in self.candidates if c.sample_idx != PLAIN]

    def best_first(self) -> list[Candidate]:
        """By reward, then by rank; of equals what says something, then what ended by itself, then what repeats itself
        least, then the likeliest as a whole (ADR 13); then by sample_idx.

        With each word searched once a text that goes round in circles ties with its first words. Log-probability per
        token would choose it: nothing is likelier than what was just said.
        """
        return sorted(
            self.candidates,
            key=lambda c: (
                *(-self.value(c), self.place(c), c.sample_idx == PLAIN),
                *(not c.finished, c.repeats, -c.logprob, c.sample_idx),
            ),
        )

    def worst_first(self) -> list[Candidate]:
        """By reward, worst first; of equals the likelier first: unlearning what is never said changes little."""
        return sorted(
            self.candidates, key=lambda c: (self.value(c), -self.place(c), -c.logprob_per_token, c.sample_idx)
        )


def ranked_query(row: Mapping[str, Any], prompt: Prompt, config: PreferConfig) -> RankedQuery:
    """A row of `aqe.prefer.reader` with the prompt that trains.

    With `include_plain` the plain query competes as the empty expansion, which ends at once. It has no log-probability;
    it stands after its equals, because saying something is the rule.
    """
    values = {r["sample_idx"]: (r["gold_rank"], r["score"] > 0, _known(r["ndcg"])) for r in row["ranks"]}
    plain = Candidate(PLAIN, "", (prompt.end,), "", True, -math.inf, 0, *values[PLAIN])
    candidates = [
        Candidate(
            sample["sample_idx"],
            sample["raw"],
            tuple(completion_ids(sample["token_ids"], sample["stop_at"], prompt.end)),
            sample["expansion"],
            sample["finish_reason"] == "stop",
            sample["logprob"],
            sample["num_tokens"],
            *values[sample["sample_idx"]],
        )
        for sample in row["samples"]
    ]
    extra = [plain] if config.include_plain else []
    return RankedQuery(row["qid"], prompt, plain, (*candidates, *extra), REWARDS[config.reward], config.depth)


def _known(ndcg: float | None) -> float:
    return math.nan if ndcg is None else ndcg


def may_be_chosen(candidate: Candidate, config: PreferConfig) -> bool:
    """Whether a candidate may be a target: see `allow_truncated`, `allow_empty`, `include_plain`."""
    if candidate.sample_idx == PLAIN:
        return True
    return (candidate.finished or config.allow_truncated) and (bool(candidate.expansion) or config.allow_empty)
