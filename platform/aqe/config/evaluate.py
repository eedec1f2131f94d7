"""Evaluation."""

from typing import Literal

from pydantic import Field, PositiveInt

from aqe.config.base import Config
from aqe.config.sample import PromptConfig

System = Literal[
    "bm25",
    "bm25_tuned",
    "bm25_rm3",
    "zero_shot",
    "zero_shot_best",
    "zero_shot_cut",
    "union",
    "filtered",
    "rsft_random",
    "best_of_n",
]
DEFAULT_SYSTEMS: tuple[System, ...] = (
    "bm25",
    "bm25_tuned",
    "zero_shot",
    "zero_shot_best",
    "zero_shot_cut",
)


class EvaluateConfig(Config):
    """What the report compares, and how."""

    split: Literal["test", "dev"] = "test"
    """Queries that the report is about. Use `dev` while you choose settings, so that the test queries stay unseen."""
    systems: tuple[System, ...] = DEFAULT_SYSTEMS
    """What the aligned models are compared with."""
    tune_queries: int = Field(default=1_000, ge=0)
    """Dev queries that are needed to choose k1 and b. With fewer, `index.k1` and `index.b` stay. 0 never tunes: use it
    if the settings of your search engine are fixed."""
    seeds: int = Field(default=1, ge=1, le=20)
    """Training runs per aligned model; its row is their mean. Their seeds are `align.seed` and the numbers after it.
    The last of several runs also draws new candidates, with `sample.seed` + 1."""
    pools: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Test sets that are also reported together: the name of a pool, and the names of its sets. A set has the name of
    its file without suffix, or of its directory."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Token limit of greedy expansions. `null` means `sample.max_tokens`."""
    zero_shot_prompts: tuple[str | PromptConfig, ...] = ()
    """Prompts that `zero_shot_best` tries in addition to `prompt` and `sample.prompt`. It takes the best one on dev."""
    cut_words: tuple[PositiveInt, ...] = Field(default=(1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 100), min_length=1)
    """Lengths in words that `zero_shot_cut` tries. It takes the best one on dev. The longest ones cut nothing."""
    union_candidates: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    """Numbers of candidates that `union` tries to search together. It takes the best one on the training queries, which
    have candidates already."""
    oracle_queries: int | None = Field(default=None, ge=1)
    """Test queries that get candidates if `best_of_n`, `union` or `filtered` needs some. `null` means all of them. The
    rows of these systems say how many queries they cover."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples of the paired bootstrap."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Confidence of the intervals, and what a difference must reach to count as shown."""
    examples: int = Field(default=8, ge=0)
    """How many of the best wins and of the worst losses the report shows."""
    seed: int = 0
    """Seed of the bootstrap, of the randomisation test and of the examples that nobody picked."""
