"""Evaluation."""

from typing import Literal

from pydantic import Field, PositiveInt

from aqe.config.base import Config
from aqe.config.sample import PromptConfig


class EvaluateConfig(Config):
    """What the report's table is made of."""

    split: Literal["test", "dev"] = "test"
    """`dev` to choose settings by, so that the test queries stay unseen."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Token limit of greedy expansions; null means that of `sample`."""
    zero_shot_prompts: tuple[str | PromptConfig, ...] = ()
    """Prompts tried for `zero_shot_best`, beside `prompt` and `sample.prompt`; the best on dev is taken."""
    cut_words: tuple[PositiveInt, ...] = Field(default=(1, 2, 3, 4, 6, 8, 12), min_length=1)
    """Lengths tried for `zero_shot_cut`; the best on dev is taken."""
    oracle_queries: int | None = Field(default=None, ge=0)
    """Test queries of the best-of-n oracle; null means all. Its row says how many."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples of the paired bootstrap."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    examples: int = Field(default=8, ge=0)
    """Best wins and worst losses that the report shows."""
    seed: int = 0
