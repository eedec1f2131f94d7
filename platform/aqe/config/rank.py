"""Ranking and preferences."""

from typing import Literal

from pydantic import Field

from aqe.config.base import Config


class RankConfig(Config):
    """Exact gold ranks of query + expansion."""

    engine: Literal["impacts", "lucene"] = "impacts"
    """`impacts` counts over the impact index in compiled loops; `lucene`, the reference, has the same ranks slowly."""
    query_weight: int = Field(default=1, ge=1)
    """How often the query is repeated before the expansion, in ranking, evaluation and serving alike."""
    distinct_words: bool = False
    """Each word of an expansion is searched once: BM25 counts a repeated word linearly, and small models repeat.
    In ranking, evaluation and serving alike."""
    ndcg_at: int | None = Field(default=None, ge=1)
    """Compute nDCG down to this depth too, one search a candidate more; for `prefer.reward: ndcg`."""
    spread_shards: bool = False
    """Each document shard of the impact index in an actor of its own, somewhere on the cluster: for a corpus that no
    single node can hold. Otherwise every node maps all shards."""
    workers: int | None = Field(default=None, ge=1)
    """Actors; null means one a CPU core. More than fit wait for an autoscaler."""
    queries_per_unit: int = Field(default=8, ge=1)
    """Queries ranked by one task, the unit of resuming."""


class PreferConfig(Config):
    """Which candidates become RSFT targets and DPO pairs."""

    reward: Literal["rank", "reciprocal_rank", "ndcg"] = "rank"
    """What orders candidates, and what `min_margin` is measured in: log2 of the rank, the reciprocal rank (the same
    order), or nDCG, which counts all relevant passages and needs `rank.ndcg_at`."""
    depth: int | None = Field(default=None, ge=1)
    """Ranks beyond it are all worth the same, as what is not found (EAR: 100); null tells all ranks apart."""
    min_margin: float = Field(default=0.0, ge=0)
    """Least difference in reward between chosen and rejected."""
    pairs_per_query: int = Field(default=1, ge=1)
    """Pairs a query: the best text against the worst, the second best against the second worst, ..."""
    rsft_only_with_pair: bool = False
    """RSFT learns from a query only where its candidates differ in reward: else the best is any one."""
    only_if_better_than_plain: bool = False
    """Take a query only where its best candidate ranks above the plain query."""
    include_plain: bool = False
    """The plain query competes as the empty expansion, so that the model can learn when to say nothing."""
    allow_truncated: bool = True
    """Candidates cut off at the token limit may be chosen (they never teach the end of text)."""
    allow_empty: bool = False
    """Candidates without any text may be chosen."""
