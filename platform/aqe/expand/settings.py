"""How an aligned model wants to be asked: written beside its weights, read by the Expander."""

from pathlib import Path

from pydantic import Field

from aqe.artifact import write_text
from aqe.config.base import Config
from aqe.config.pipeline import PipelineConfig
from aqe.config.sample import PromptConfig
from aqe.prompts import PROMPTS, resolve

SETTINGS = "aqe.json"


class ExpanderSettings(Config):
    """What a model was aligned for. Written beside its weights as `aqe.json`."""

    prompt: PromptConfig = PROMPTS["ear"]
    query_weight: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=100, ge=1)
    distinct_words: bool = False
    """Each word of an expansion is searched once."""

    @classmethod
    def of(cls, config: PipelineConfig) -> "ExpanderSettings":
        """How the aligned models of a run are asked."""
        return cls(
            prompt=resolve(config.prompt),
            query_weight=config.rank.query_weight,
            max_tokens=config.evaluate.max_tokens or config.sample.max_tokens,
            distinct_words=config.rank.distinct_words,
        )

    def write(self, model_dir: Path) -> None:
        """Write `model_dir`/aqe.json."""
        write_text(self.model_dump_json(indent=1) + "\n", model_dir / SETTINGS)
