"""The loop: which stage gets what. A stage's function makes its artifact, or finds it as it was made before.

Data flows one way: ingest, index, judge, sample, rank, prefer, align, expand, search, report. Where the base model is
asked for queries, that comes after the index. An attribute asks for the artifacts that it needs, so any stage can be
run alone and makes what is missing before it.
"""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from aqe.align.stage import align
from aqe.artifact import Artifact
from aqe.base_model import LanguageModel, resolve_model
from aqe.config.pipeline import BASE, PipelineConfig, steps
from aqe.config.sample import PromptConfig
from aqe.config.sources import Split
from aqe.corpus.stage import ingest_corpus, ingest_queries, judge_queries
from aqe.evaluate.evidence import Origin
from aqe.evaluate.tune import Tuned, tune_bm25
from aqe.expand.settings import ExpanderSettings
from aqe.index.stage import impact_index, lucene_index, vector_index
from aqe.prefer.stage import build_preferences
from aqe.prompts import resolve
from aqe.rank.retriever import Retriever
from aqe.rank.stage import rank_expansions
from aqe.report.card import write_card
from aqe.run import Run
from aqe.sample.stage import Asked, Generation, sample_all
from aqe.synthetic.stage import asking, write_queries


class Pipeline:
    """One configuration's artifacts. Needs a connection to Ray for whatever is not made yet."""

    def __init__(self, config: PipelineConfig, run: Run | None = None) -> None:
        self.config = config
        self.run = run or Run.of(config)

    # What the user brought.

    @cached_property
    def corpus(self) -> Artifact:
        return ingest_corpus(self.run, self.config.corpus)

    @cached_property
    def queries(self) -> Artifact:
        """Those that the user brought, and those that the base model is asked for."""
        config = self.config.queries
        if not config.asked:
            return ingest_queries(self.run, config)
        asked = asking(config, self.config.sample, self.config.engine)
        written = write_queries(self.run, config, asked, self.configured, corpus=self.corpus, model=self.base)
        return ingest_queries(self.run, config, written=written)

    @cached_property
    def base(self) -> LanguageModel:
        """The model that samples, and that alignment starts from."""
        return resolve_model(self.config.model)

    # Index and judgements.

    @cached_property
    def index(self) -> Artifact:
        return lucene_index(self.run, self.config.given_index, corpus=self.corpus)

    @cached_property
    def vectors(self) -> Artifact:
        """The same with each passage's terms, for RM3."""
        return vector_index(self.run, self.config.given_index, corpus=self.corpus)

    @cached_property
    def impacts(self) -> Artifact:
        return impact_index(self.run, self.config.index, index=self.index)

    @property
    def configured(self) -> Retriever:
        """The search as it is configured, before k1 and b are chosen."""
        index = self.index if self.config.rank.engine == "lucene" else self.impacts
        return Retriever(index, self.config.rank, self.config.index)

    @cached_property
    def tuned(self) -> Tuned:
        """BM25's settings, chosen on dev."""
        return tune_bm25(self.run, self.configured, self.config.evaluate, judged=self.judged("dev"))

    @property
    def retriever(self) -> Retriever:
        """What ranks candidates, and what every system but `bm25` is searched with."""
        return self.configured.at(*self.tuned.chosen)

    def judged(self, split: Split) -> Artifact:
        return judge_queries(self.run, split=split, corpus=self.corpus, queries=self.queries)

    # Candidates, their ranks, what is preferred. Drawn from the base model with the prompt that samples; `of` names an
    # aligned model, or BASE, that is asked with the prompt that serves.

    def samples(self, split: Split = "train", limit: int | None = None, of: str | None = None) -> Artifact:
        """Candidates of each query, of the first `limit` of a split."""
        return self.ask(self.candidates(split, limit, of))[0]

    def candidates(self, split: Split, limit: int | None = None, of: str | None = None) -> Asked:
        """What is asked for them."""
        generation = Generation.draw(self.config.sample, self.config.engine, self._prompt_for(of), limit)
        return Asked(_named(f"sample_{split}", of), generation, self.judged(split), self.language_model(of))

    def ask(self, *asked: Asked) -> list[Artifact]:
        """What models answer, each of which is loaded once for all that it is asked."""
        return sample_all(self.run, asked)

    def _prompt_for(self, of: str | None) -> PromptConfig:
        return resolve(self.config.sample_prompt if of is None else self.config.prompt)

    def ranks(self, split: Split = "train", limit: int | None = None, of: str | None = None) -> Artifact:
        judged, samples, stage = self.judged(split), self.samples(split, limit, of), _named(f"rank_{split}", of)
        return rank_expansions(self.run, self.retriever, judged=judged, samples=samples, stage=stage)

    def preferred(self, of: str | None = None) -> Artifact:
        """RSFT and DPO sets, with the prompt that trains and serves."""
        prompt = resolve(self.config.prompt)
        drawn = {"judged": self.judged("train"), "samples": self.samples(of=of), "ranks": self.ranks(of=of)}
        return build_preferences(self.run, self.config.prefer, prompt=prompt, model=self.base, **drawn)

    def origin(self, name: str) -> Origin:
        """What the aligned model of this name comes from."""
        of = self._drawn_for(name)
        artifacts = (self.corpus, self.queries, self.index, self.samples(of=of), self.ranks(of=of), self.preferred(of))
        return Origin(self.config, self.base, *artifacts, self._prompt_for(of), self.tuned)

    def model(self, name: str) -> Artifact:
        """The aligned model of this name: its last stage's artifact, with `model/` in it.

        `rsft`, `dpo`, `rsft_dpo`, each further round of DPO as one more `_dpo`, and the control `rsft_random`.
        """
        before, targets = steps(name)
        preferences, start = self.preferred(self._drawn_for(name)), self.language_model(before)
        describe = partial(self._describe, name)
        return align(self.run, self.config.align, targets, preferences=preferences, start=start, describe=describe)

    def _drawn_for(self, name: str) -> str | None:
        """Whose candidates the last stage of a model learns from."""
        before, targets = steps(name)
        again = before is not None and before.endswith("dpo")
        if targets != "dpo" or not (self.config.align.dpo.on_policy or again):
            return None
        # Of the base model, asked as it is served, where that is not what was drawn anyway.
        same = resolve(self.config.prompt) == resolve(self.config.sample_prompt)
        return before or (None if same else BASE)

    def made_for(self, name: str) -> list[Artifact]:
        """The stages of a model from the first to the last, with candidates and ranks that were drawn for it alone."""
        before, _ = steps(name)
        own = [] if (drawn := self._drawn_for(name)) is None else [self.samples(of=drawn), self.ranks(of=drawn)]
        return [*([] if before is None else self.made_for(before)), *own, self.model(name)]

    def aligned(self, name: str) -> str:
        """A model of the configuration with all its rounds: what `model` calls it."""
        return name + "_dpo" * (self.config.align.dpo.rounds - 1) if name.endswith("dpo") else name

    def language_model(self, of: str | None) -> LanguageModel:
        """What an aligned model's name, or none, stands for where something is asked of it."""
        if of in (None, BASE):
            return self.base
        artifact = self.model(str(of))
        return LanguageModel(artifact.path / "model", str(of), artifact.fingerprint, self.base.license, artifact)

    def _describe(self, name: str, model_dir: Path) -> None:
        """What stands beside new weights."""
        ExpanderSettings.of(self.config).write(model_dir)
        write_card(self.origin(name), name, model_dir)

    def publish(self, name: str, metrics: Mapping[str, Any] | None = None) -> None:
        """Beside a model's weights, write how it is asked now, and what was measured where `metrics` has it.

        The token limit of serving is no part of training: a model that is there may be asked otherwise.
        """
        model_dir = self.model(self.aligned(name)).path / "model"
        ExpanderSettings.of(self.config).write(model_dir)
        if metrics is not None:
            write_card(self.origin(self.aligned(name)), name, model_dir, metrics)

    # What a model writes.

    def expansions(self, split: Split, prompt: PromptConfig, of: str | None = None) -> Artifact:
        """One greedy expansion of each query, by the base model or by one of the aligned models."""
        return self.ask(self.greedy(split, prompt, of))[0]

    def greedy(self, split: Split, prompt: PromptConfig, of: str | None = None) -> Asked:
        """What is asked for them."""
        sample, limit = self.config.sample, ExpanderSettings.of(self.config).max_tokens
        generation = Generation.greedy(sample, self.config.engine, prompt, limit)
        return Asked(f"expand_{split}_{of or 'base'}", generation, self.judged(split), self.language_model(of))


def _named(stage: str, of: str | None) -> str:
    """A stage's name; candidates of another model than the base model have that one's name too."""
    return stage if of is None else f"{stage}_{of}"
