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
    """What the report's table is made of."""

    split: Literal["test", "dev"] = "test"
    """`dev` to choose settings by, so that the test queries stay unseen."""
    systems: tuple[System, ...] = DEFAULT_SYSTEMS
    """What the aligned models are compared with."""
    tune_queries: int = Field(default=1_000, ge=0)
    """Dev queries that choosing k1 and b asks for; with fewer, `index.k1` and `index.b` stand. 0 tunes never: for a
    search engine whose settings are fixed."""
    seeds: int = Field(default=1, ge=1, le=20)
    """Runs of alignment that a row is the mean of, with `align.seed` and the numbers after it; of several, the last
    draws its candidates anew too, with `sample.seed` + 1."""
    pools: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Test sets that are reported on together too: the name of the pool, and those of its sets: of their files without
    suffix, or of their directories."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Token limit of greedy expansions; null means that of `sample`."""
    zero_shot_prompts: tuple[str | PromptConfig, ...] = ()
    """Prompts tried for `zero_shot_best`, beside `prompt` and `sample.prompt`; the best on dev is taken."""
    cut_words: tuple[PositiveInt, ...] = Field(default=(1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 100), min_length=1)
    """Lengths tried for `zero_shot_cut`; the best on dev is taken. The longest ones cut nothing."""
    union_candidates: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    """Numbers of candidates whose words `union` may search together; the best on the training queries is taken, which
    have candidates already."""
    oracle_queries: int | None = Field(default=None, ge=1)
    """Test queries that candidates are drawn for, where `best_of_n`, `union` or `filtered` need some; null means all of
    them. Their rows say how many."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples of the paired bootstrap."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    examples: int = Field(default=8, ge=0)
    """Best wins and worst losses that the report shows."""
    seed: int = 0
