"""Everything that a run is judged by, gathered once: evaluation, report and model card read it and ask nobody else."""

from collections.abc import Mapping
from dataclasses import dataclass

from aqe.artifact import Artifact
from aqe.base_model import LanguageModel
from aqe.config.pipeline import PipelineConfig
from aqe.config.sample import PromptConfig
from aqe.evaluate.choice import Choice
from aqe.evaluate.tune import Tuned


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
    prompt: PromptConfig
    """What asked for the candidates that were preferred last."""
    bm25: Tuned
    """What candidates were ranked with, and all but the plain row `bm25` is searched with."""


@dataclass(frozen=True)
class Evidence:
    """What was found for the held-out queries, and where it comes from."""

    origin: Origin
    judged: Mapping[str, Artifact]
    """By split."""
    models: Mapping[str, Artifact]
    """Every training stage of the first seed by the model that it ends in: of RSFT + DPO, RSFT too."""
    final: Mapping[str, str]
    """What `models` calls an aligned model of the configuration: with several rounds, the last."""
    expansions: Mapping[str, tuple[Artifact | None, ...]]
    """By system, one for each seed that it was trained with; None searches the plain queries."""
    searched: Mapping[str, tuple[Artifact, ...]]
    """What the search found for each of them."""
    trained: Mapping[str, tuple[tuple[Artifact, ...], ...]]
    """What was made to train a system, for each seed: the stages of its model, with pairs that were drawn for it; the
    filter of `filtered`."""
    choices: Mapping[str, Choice | Tuned]
    """What was chosen on dev, by the system that it makes."""

    @property
    def reported(self) -> Artifact:
        """The judged queries that are reported on."""
        return self.judged[self.origin.config.evaluate.split]
