"""What the aligned models are compared with: every system's expansions and searches, and the report on them."""

from functools import cached_property

from aqe.artifact import Artifact
from aqe.config.data import SPLITS
from aqe.config.pipeline import PipelineConfig, trained
from aqe.config.sample import PromptConfig
from aqe.evaluate.choice import Choice
from aqe.evaluate.evidence import Evidence
from aqe.evaluate.feedback import search_rm3, tune_rm3
from aqe.evaluate.filter import Filter, train_filter
from aqe.evaluate.stage import best_of_n, choose_cut, choose_prompt, cut_expansions, filtered, union
from aqe.evaluate.tune import Tuned
from aqe.pipeline import RANDOM, Pipeline
from aqe.prompts import resolve
from aqe.rank.stage import search_expansions
from aqe.report.stage import closing, metrics_of, report


class Comparison:
    """The systems of one configuration, on the split that `evaluate.split` names."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.first = Pipeline(config)
        self.pipelines = [self.first]
        self.pipelines += [Pipeline(config.seeded(i), self.first.run) for i in range(1, config.evaluate.seeds)]
        """One for each training seed. Controls that nothing is trained for are the first one's."""
        self.run, self.wanted = self.first.run, config.evaluate.systems
        self.split = config.evaluate.split

    def prepare(self) -> None:
        """Everything up to the aligned models, in the order of the loop."""
        _ = self.first.corpus, self.first.queries, [self.first.judged(split) for split in SPLITS], self.first.retriever
        for pipeline in self.pipelines:
            for name in self._trained:
                pipeline.model(name)

    @property
    def _trained(self) -> list[str]:
        """What is trained with each seed, by the name of `Pipeline.model`."""
        control = [RANDOM] if RANDOM in self.wanted else []
        return [*control, *map(self.first.aligned, self.config.models)]

    @cached_property
    def _greedy(self) -> dict[str, Artifact]:
        """Greedy expansions of dev by every prompt that is tried."""
        return {name: self.first.expansions("dev", prompt) for name, prompt in self._prompts.items()}

    @property
    def _prompts(self) -> dict[str, PromptConfig]:
        config = self.config
        named = map(resolve, (config.prompt, config.sample_prompt, *config.evaluate.zero_shot_prompts))
        return {prompt.name: prompt for prompt in named}

    @cached_property
    def _prompt(self) -> Choice:
        return choose_prompt(self.run, self.first.retriever, judged=self.first.judged("dev"), greedy=self._greedy)

    @cached_property
    def _best(self) -> Artifact:
        return self.first.expansions(self.split, self._prompts[self._prompt.best])

    @cached_property
    def _words(self) -> Choice:
        expansions, tried = self._greedy[self._prompt.best], self.config.evaluate.cut_words
        return choose_cut(self.run, self.first.retriever, tried, judged=self.first.judged("dev"), expansions=expansions)

    @cached_property
    def _filter(self) -> Filter:
        first = self.first
        drawn = {"judged": first.judged("train"), "samples": first.samples(), "ranks": first.ranks()}
        return train_filter(self.run, self.config.prefer, **drawn, model=first.base)

    def _control(self, name: str) -> Artifact | None:
        """Expansions of a control that a model wrote; None for the plain query, and what is trained with each seed."""
        first, judged, limit = self.first, self.first.judged(self.split), self.config.evaluate.oracle_queries
        match name:
            case "zero_shot":
                return first.expansions(self.split, resolve(self.config.prompt))
            case "zero_shot_best":
                return self._best
            case "zero_shot_cut":
                words, distinct = int(self._words.best), self.config.rank.distinct_words
                return cut_expansions(self.run, words, distinct, judged=judged, expansions=self._best)
            case "union":
                samples, count = first.samples(self.split, limit), self.config.evaluate.union_candidates
                return union(self.run, count, judged=judged, samples=samples)
            case "filtered":
                return filtered(self.run, self._filter, judged=judged, samples=first.samples(self.split, limit))
            case "best_of_n":
                samples, ranks = first.samples(self.split, limit), first.ranks(self.split, limit)
                return best_of_n(self.run, self.config.prefer, judged=judged, samples=samples, ranks=ranks)
        return None

    def _searched(self, name: str, expansions: Artifact | None) -> Artifact:
        first, stage = self.first, f"search_{name}"
        retriever = first.configured if name == "bm25" else first.retriever
        return search_expansions(
            self.run, retriever, judged=first.judged(self.split), expansions=expansions, stage=stage
        )

    @cached_property
    def evidence(self) -> Evidence:
        """All systems: what they write, and what the search finds for it."""
        first, judged = self.first, self.first.judged(self.split)
        expansions: dict[str, Artifact | None] = {}
        searched: dict[str, tuple[Artifact, ...]] = {}
        choices: dict[str, Choice | Tuned] = {}
        learned: dict[str, tuple[Artifact, ...]] = {}
        for system in self.wanted:
            if system == "bm25_rm3":
                dev, index = first.judged("dev"), first.index
                point, choices[system] = tune_rm3(self.run, first.retriever, index=index, judged=dev)
                found = search_rm3(self.run, first.retriever, point, index=index, judged=judged)
                expansions[system], searched[system] = None, (found,)
            elif system != RANDOM:
                expansions[system] = self._control(system)
                searched[system] = (self._searched(system, expansions[system]),)
        served = resolve(self.config.prompt)
        for name in [RANDOM] * (RANDOM in self.wanted) + list(self.config.models):
            written = [p.expansions(self.split, served, p.aligned(name)) for p in self.pipelines]
            learned[name] = tuple(p.model(p.aligned(name)) for p in self.pipelines)
            expansions[name] = written[0]
            searched[name] = tuple(self._searched(name, one) for one in written)
        if "bm25_tuned" in self.wanted:
            choices["bm25_tuned"] = first.tuned
        if "filtered" in self.wanted:
            choices["filtered"], learned["filtered"] = self._filter.choice, (self._filter.artifact,)
        if "zero_shot_best" in self.wanted or "zero_shot_cut" in self.wanted:
            choices["zero_shot_best"] = self._prompt
        if "zero_shot_cut" in self.wanted:
            choices["zero_shot_cut"] = self._words
        models = {name: first.model(first.aligned(name)) for name in trained(self.config.models)}
        splits: dict[str, Artifact] = {name: first.judged(name) for name in SPLITS}
        return Evidence(first.origin, splits, models, expansions, searched, learned, choices)

    def evaluate(self) -> str:
        """Build the report, and the models' cards from it; returns what the terminal shows."""
        artifact = report(self.run, self.evidence)
        metrics = metrics_of(artifact) if self.split == "test" else None
        for name in self.config.models:
            self.first.publish(name, metrics)
        return closing(self.run, self.evidence, artifact)
