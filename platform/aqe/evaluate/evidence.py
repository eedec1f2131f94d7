"""Everything that a run is judged by, gathered once: evaluation, report and model card read it and ask nobody else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aqe.artifact import Artifact
from aqe.base_model import LanguageModel
from aqe.config.pipeline import PipelineConfig


@dataclass(frozen=True)
class Origin:
    """What the aligned models of a run come from."""

    config: PipelineConfig
    base: LanguageModel
    corpus: Artifact
    queries: Artifact
    index: Artifact
    """The Lucene index."""
    samples: Artifact
    ranks: Artifact
    preferences: Artifact


@dataclass(frozen=True)
class Choice:
    """What was tried on dev: name -> MRR, and the best of it (the first of equals)."""

    tried: Mapping[str, float]
    best: str

    def as_dict(self) -> dict[str, Any]:
        return {"chosen": self.best, "dev_mrr": dict(self.tried)}


@dataclass(frozen=True)
class Evidence:
    """What was found for the held-out queries, and where it comes from."""

    origin: Origin
    judged: Mapping[str, Artifact]
    """By split."""
    models: Mapping[str, Artifact]
    """Every training stage of the run by the model that it ends in: of RSFT + DPO, RSFT too."""
    expansions: Mapping[str, Artifact | None]
    """By system, in the order of the table; None searches the plain queries."""
    searched: Mapping[str, Artifact]
    """By system."""
    choices: Mapping[str, Choice]
    """What was chosen on dev, by the system that it makes."""

    @property
    def reported(self) -> Artifact:
        """The judged queries that are reported on."""
        return self.judged[self.origin.config.evaluate.split]
