"""The loop: which stage gets what. A stage's function makes its artifact, or finds it as it was made before.

Data flows one way: ingest, index, judge, sample, rank, prefer, align, expand, search, report. An attribute asks for the
artifacts that it needs, so any stage can be run alone and makes what is missing before it.
"""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from aqe.align.stage import align
from aqe.artifact import Artifact
from aqe.base_model import LanguageModel, resolve_model
from aqe.config.data import SPLITS, Split
from aqe.config.pipeline import STAGES, PipelineConfig, trained
from aqe.config.sample import PromptConfig
from aqe.corpus.stage import ingest_corpus, ingest_queries, judge_queries
from aqe.evaluate.evidence import Evidence, Origin
from aqe.evaluate.stage import best_of_n, choose_cut, choose_prompt, cut_expansions
from aqe.expand.settings import ExpanderSettings
from aqe.index.stage import impact_index, lucene_index
from aqe.observe.progress import Say, say
from aqe.prefer.stage import build_preferences
from aqe.prompts import resolve
from aqe.rank.retriever import Retriever
from aqe.rank.stage import rank_expansions, search_expansions
from aqe.report.card import write_card
from aqe.report.stage import closing, metrics_of, report
from aqe.run import Run
from aqe.sample.stage import Generation, sample_expansions


class Pipeline:
    """One configuration's artifacts. Needs a connection to Ray for whatever is not made yet."""

    def __init__(self, config: PipelineConfig, say: Say = say) -> None:
        self.config = config
        self.run = Run(config.run_dir, say, config.price_per_hour, config.max_dead_share)

    # What the user brought.

    @cached_property
    def corpus(self) -> Artifact:
        return ingest_corpus(self.run, self.config.corpus)

    @cached_property
    def queries(self) -> Artifact:
        return ingest_queries(self.run, self.config.queries)

    @cached_property
    def base(self) -> LanguageModel:
        """The model that samples, and that alignment starts from."""
        return resolve_model(self.config.model)

    # Index and judgements.

    @cached_property
    def index(self) -> Artifact:
        return lucene_index(self.run, self.config.index, corpus=self.corpus)

    @cached_property
    def impacts(self) -> Artifact:
        return impact_index(self.run, self.config.index, index=self.index)

    @property
    def retriever(self) -> Retriever:
        """What ranks candidates, and what every system is searched with."""
        index = self.index if self.config.rank.engine == "lucene" else self.impacts
        return Retriever(index, self.config.rank, self.config.index)

    def judged(self, split: Split) -> Artifact:
        return judge_queries(self.run, split=split, corpus=self.corpus, queries=self.queries)

    # Candidates, their ranks, what is preferred.

    def samples(self, split: Split = "train", limit: int | None = None) -> Artifact:
        """Candidates of each query, drawn from the base model with the prompt that samples."""
        prompt = resolve(self.config.sample_prompt)
        generation = Generation.draw(self.config.sample, self.config.engine, prompt, limit)
        judged = self.judged(split)
        return sample_expansions(self.run, generation, judged=judged, model=self.base, stage=f"sample_{split}")

    def ranks(self, split: Split = "train", limit: int | None = None) -> Artifact:
        samples, judged = self.samples(split, limit), self.judged(split)
        return rank_expansions(self.run, self.retriever, judged=judged, samples=samples, stage=f"rank_{split}")

    @cached_property
    def preferences(self) -> Artifact:
        """RSFT and DPO sets, with the prompt that trains and serves."""
        return build_preferences(
            self.run,
            self.config.prefer,
            prompt=resolve(self.config.prompt),
            model=self.base,
            judged=self.judged("train"),
            samples=self.samples(),
            ranks=self.ranks(),
        )

    @cached_property
    def origin(self) -> Origin:
        before = (self.corpus, self.queries, self.index)
        return Origin(self.config, self.base, *before, self.samples(), self.ranks(), self.preferences)

    # Alignment.

    def model(self, name: str) -> Artifact:
        """The aligned model `rsft`, `dpo` or `rsft_dpo`: its last stage's artifact, with `model/` in it."""
        *before, kind = STAGES[name]
        start, describe = self._language_model("_".join(before) or None), partial(self._describe, name)
        preferences = self.preferences
        return align(self.run, self.config.align, kind, preferences=preferences, start=start, describe=describe)

    def _language_model(self, name: str | None) -> LanguageModel:
        """The aligned model of this name; the base model for None."""
        if name is None:
            return self.base
        artifact = self.model(name)
        return LanguageModel(artifact.path / "model", name, artifact.fingerprint, self.base.license, artifact)

    def _describe(self, name: str, model_dir: Path) -> None:
        """What stands beside new weights."""
        ExpanderSettings.of(self.config).write(model_dir)
        write_card(self.origin, name, model_dir)

    def publish(self, name: str, metrics: Mapping[str, Any] | None = None) -> None:
        """Beside a model's weights, write how it is asked now, and what was measured where `metrics` has it.

        The token limit of serving is no part of training: a model that is there may be asked otherwise.
        """
        model_dir = self.model(name).path / "model"
        ExpanderSettings.of(self.config).write(model_dir)
        if metrics is not None:
            write_card(self.origin, name, model_dir, metrics)

    def prepare(self) -> None:
        """Everything up to the aligned models, in the order of the loop."""
        _ = self.corpus, self.queries, self.retriever, [self.judged(split) for split in SPLITS]
        for name in self.config.models:
            self.model(name)

    # Evaluation.

    def expansions(self, split: Split, prompt: PromptConfig, model: str | None = None) -> Artifact:
        """One greedy expansion of each query, by the base model or by one of the aligned models."""
        limit = ExpanderSettings.of(self.config).max_tokens
        generation = Generation.greedy(self.config.sample, self.config.engine, prompt, limit)
        stage = f"expand_{split}_{model or 'base'}"
        asked, judged = self._language_model(model), self.judged(split)
        return sample_expansions(self.run, generation, judged=judged, model=asked, stage=stage)

    @cached_property
    def evidence(self) -> Evidence:
        """All systems: what they write, and what the search finds for it."""
        config, run, retriever = self.config, self.run, self.retriever
        split, served = config.evaluate.split, resolve(config.prompt)
        dev, judged = self.judged("dev"), self.judged(split)
        named = map(resolve, (config.prompt, config.sample_prompt, *config.evaluate.zero_shot_prompts))
        prompts = {prompt.name: prompt for prompt in named}
        greedy = {name: self.expansions("dev", prompt) for name, prompt in prompts.items()}
        prompt = choose_prompt(run, retriever, judged=dev, greedy=greedy)
        words = choose_cut(run, retriever, config.evaluate.cut_words, judged=dev, expansions=greedy[prompt.best])
        best = self.expansions(split, prompts[prompt.best])
        distinct = config.rank.distinct_words
        systems: dict[str, Artifact | None] = {
            "bm25": None,
            "zero_shot": self.expansions(split, served),
            "zero_shot_best": best,
            "zero_shot_cut": cut_expansions(run, int(words.best), distinct, judged=judged, expansions=best),
            **{name: self.expansions(split, served, name) for name in config.models},
        }
        if (limit := config.evaluate.oracle_queries) != 0:
            samples, ranks = self.samples(split, limit), self.ranks(split, limit)
            systems["best_of_n"] = best_of_n(run, config.prefer, judged=judged, samples=samples, ranks=ranks)
        searched = {
            name: search_expansions(run, retriever, judged=judged, expansions=expansions, stage=f"search_{name}")
            for name, expansions in systems.items()
        }
        models = {name: self.model(name) for name in trained(config.models)}
        choices = {"zero_shot_best": prompt, "zero_shot_cut": words}
        splits: dict[str, Artifact] = {name: self.judged(name) for name in SPLITS}
        return Evidence(self.origin, splits, models, systems, searched, choices)

    def evaluate(self) -> str:
        """Build the report, and the models' cards from it; returns what the terminal shows."""
        artifact = report(self.run, self.evidence)
        metrics = metrics_of(artifact) if self.config.evaluate.split == "test" else None
        for name in self.config.models:
            self.publish(name, metrics)
        return closing(self.run, self.evidence, artifact)
