"""Ranking and preferences."""

from typing import Literal

from pydantic import Field

from aqe.config.base import Config


class RankConfig(Config):
    """Exact gold ranks of query plus expansion, and the search of the report."""

    engine: Literal["impacts", "lucene"] = "impacts"
    """`impacts` counts over the impact index in compiled loops. `lucene` is the reference: the same ranks, but
    slowly."""
    query_weight: int = Field(default=1, ge=1)
    """How often the query is repeated before the expansion. It holds for ranking, evaluation and serving."""
    distinct_words: bool = False
    """Search each word of an expansion once. BM25 counts a repeated word linearly, and small models repeat themselves.
    It holds for ranking, evaluation and serving."""
    ndcg_at: int | None = Field(default=None, ge=1)
    """Also compute nDCG down to this depth, with one more search per candidate. `prefer.reward: ndcg` needs it."""
    spread_shards: bool = False
    """Put each document shard of the impact index in an actor of its own, somewhere on the cluster. Use it for a corpus
    that no single node can hold. Otherwise every node maps all shards into memory."""
    workers: int | None = Field(default=None, ge=1)
    """Actors that rank and search. `null` means one per CPU core. Actors that do not fit wait for an autoscaler."""
    queries_per_unit: int = Field(default=8, ge=1)
    """Queries that one task ranks. A run resumes at this unit."""


class PreferConfig(Config):
    """Which candidates become RSFT's targets and DPO's pairs."""

    reward: Literal["rank", "reciprocal_rank", "ndcg"] = "rank"
    """What orders candidates, and what `min_margin` is measured in. `rank` is log2 of the rank, `reciprocal_rank` gives
    the same order, and `ndcg` counts all relevant passages and needs `rank.ndcg_at`."""
    depth: int | None = Field(default=None, ge=1)
    """All ranks beyond this depth count as not found (EAR uses 100). `null` tells all ranks apart."""
    min_margin: float = Field(default=0.0, ge=0)
    """Smallest difference in reward between chosen and rejected."""
    pairs_per_query: int = Field(default=1, ge=1)
    """Pairs per query: the best text against the worst, the second best against the second worst, and so on."""
    rsft_only_with_pair: bool = False
    """RSFT learns from a query only if its candidates differ in reward. If they do not, any of them is the best."""
    only_if_better_than_plain: bool = False
    """Use a query only if its best candidate ranks above the plain query."""
    include_plain: bool = False
    """Let the plain query compete as the empty expansion, so that the model can learn when to say nothing."""
    allow_truncated: bool = True
    """Candidates that were cut at the token limit may be chosen. They never teach the end of text."""
    allow_empty: bool = False
    """Candidates without any text may be chosen."""
