"""What the aligned models are compared with: every system's expansions and searches, and the report on them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from aqe import chain
from aqe.artifact import Artifact
from aqe.config.pipeline import RANDOM, every_stage
from aqe.config.sample import PromptConfig
from aqe.config.sources import SPLITS
from aqe.evaluate.choice import Choice
from aqe.evaluate.evidence import Evidence
from aqe.evaluate.feedback import search_rm3, tune_rm3
from aqe.evaluate.filter import Filter, train_filter
from aqe.evaluate.grid import Point
from aqe.evaluate.stage import (
    best_of_n,
    choose_cut,
    choose_prompt,
    choose_union,
    cut_expansions,
    filtered,
    union,
)
from aqe.evaluate.tune import Tuned
from aqe.pipeline import Pipeline
from aqe.prompts import resolve
from aqe.rank.stage import Texts, search_all
from aqe.report.closing import closing
from aqe.report.stage import metrics_of, next_steps, report
from aqe.sample.stage import Asked


class Comparison:
    """The systems of the first seed's pipeline and of the others, on the split that `evaluate.split` names."""

    def __init__(self, first: Pipeline) -> None:
        self.first = first
        self.config = config = first.config
        self.pipelines = [self.first]
        self.pipelines += [Pipeline(config.seeded(i), self.first.run) for i in range(1, config.evaluate.seeds)]
        """One for each training seed. Controls that nothing is trained for are the first one's."""
        self.run, self.wanted = self.first.run, config.evaluate.systems
        self.split = config.evaluate.split

    def prepare(self) -> None:
        """Everything up to the aligned models, in the order of the loop."""
        _ = self.first.corpus, self.first.queries, [self.first.judged(split) for split in SPLITS], self.first.retriever
        self._ask_base()
        for pipeline in self.pipelines:
            for name in self._learned:
                pipeline.model(pipeline.aligned(name))

    def _ask_base(self) -> None:
        """All that is asked of the base model, but what is asked once a prompt is chosen: it is loaded once for it."""
        first, wanted, limit = self.first, set(self.wanted), self.config.evaluate.oracle_queries
        asked = [first.candidates("train")]
        asked += list(self._tried.values()) if wanted & {"zero_shot_best", "zero_shot_cut"} else []
        asked += [first.greedy(self.split, resolve(self.config.prompt))] if "zero_shot" in wanted else []
        asked += [first.candidates(self.split, limit)] if wanted & {"union", "filtered", "best_of_n"} else []
        first.ask(*asked)

    @property
    def _tried(self) -> dict[str, Asked]:
        """Greedy expansions of dev by every prompt that is tried."""
        return {name: self.first.greedy("dev", prompt) for name, prompt in self._prompts.items()}

    @cached_property
    def _greedy(self) -> dict[str, Artifact]:
        return dict(zip(self._tried, self.first.ask(*self._tried.values()), strict=True))

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
        """Trained with the first seed alone: two learning rates take as long as two runs of DPO."""
        first, config = self.first, self.config
        drawn = {"judged": first.judged("train"), "samples": first.samples(), "ranks": first.ranks()}
        return train_filter(self.run, config.prefer, config.align.seed, **drawn, model=first.base)

    @cached_property
    def _union(self) -> Choice:
        first, tried = self.first, self.config.evaluate.union_candidates
        train = {"judged": first.judged("train"), "samples": first.samples()}
        return choose_union(self.run, first.retriever, tried, **train)

    def _control(self, name: str) -> Artifact | None:
        """Expansions of a control for which no seed is tried; None for the plain query."""
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
                samples = first.samples(self.split, limit)
                return union(self.run, int(self._union.best), judged=judged, samples=samples)
            case "filtered":
                return filtered(self.run, self._filter, judged=judged, samples=first.samples(self.split, limit))
            case "best_of_n":
                samples, ranks = first.samples(self.split, limit), first.ranks(self.split, limit)
                return best_of_n(self.run, judged=judged, samples=samples, ranks=ranks)
        return None

    def _ask_aligned(self) -> None:
        """One greedy expansion of each query by every trained model."""
        served = resolve(self.config.prompt)
        self.first.ask(
            *(p.greedy(self.split, served, p.aligned(name)) for name in self._learned for p in self.pipelines)
        )

    def _written(self, name: str) -> list[Artifact | None]:
        """Expansions of a system: one for each seed where something is trained for it."""
        if name in self._learned:
            served = resolve(self.config.prompt)
            return [p.expansions(self.split, served, p.aligned(name)) for p in self.pipelines]
        return [self._control(name)]

    @property
    def _learned(self) -> list[str]:
        """Systems that are a trained model."""
        return [RANDOM] * (RANDOM in self.wanted) + list(self.config.models)

    def _searched(self, expansions: Mapping[str, Sequence[Artifact | None]]) -> dict[str, tuple[Artifact, ...]]:
        """What the search finds for each system's expansions, in one pool's life but for RM3, which Lucene finds."""
        first, judged = self.first, self.first.judged(self.split)
        texts = [
            Texts(f"search_{name}", first.configured if name == "bm25" else first.retriever, judged, one)
            for name, of in expansions.items()
            for one in of
            if name != "bm25_rm3"
        ]
        found = iter(search_all(self.run, "search", texts))
        return {
            name: tuple(self._fed_back if name == "bm25_rm3" else next(found) for _ in of)
            for name, of in expansions.items()
        }

    @property
    def _fed_back(self) -> Artifact:
        first = self.first
        return search_rm3(self.run, first.retriever, self._rm3[0], index=first.vectors, judged=first.judged(self.split))

    @cached_property
    def _rm3(self) -> tuple[Point, Choice]:
        first = self.first
        return tune_rm3(self.run, first.retriever, index=first.vectors, judged=first.judged("dev"))

    def _trained_for(self, name: str) -> tuple[tuple[Artifact, ...], ...]:
        """What was made to train a system, for each seed."""
        if name == "filtered":
            return ((self._filter.artifact,),)
        return tuple(tuple(p.made_for(p.aligned(name))) for p in self.pipelines) if name in self._learned else ()

    @property
    def _choices(self) -> dict[str, Choice | Tuned]:
        """What was chosen on dev, by the system that it makes."""
        wanted: dict[str, Callable[[], Choice | Tuned]] = {
            "bm25_tuned": lambda: self.first.tuned,
            "bm25_rm3": lambda: self._rm3[1],
            "zero_shot_best": lambda: self._prompt,
            "zero_shot_cut": lambda: self._words,
            "union": lambda: self._union,
            "filtered": lambda: self._filter.choice,
        }
        return {name: choice() for name, choice in wanted.items() if name in self.wanted}

    @cached_property
    def evidence(self) -> Evidence:
        """All systems: what they write, and what the search finds for it."""
        first = self.first
        self._ask_base()
        self._ask_aligned()
        systems = [name for name in self.wanted if name != RANDOM] + self._learned
        expansions = {name: tuple(self._written(name)) for name in systems}
        searched = self._searched(expansions)
        stages = [self.first.aligned(name) for name in self.config.models]
        models = {name: first.model(name) for full in stages for name in every_stage(full)}
        splits: dict[str, Artifact] = {name: first.judged(name) for name in SPLITS}
        final = {name: first.aligned(name) for name in self.config.models}
        learned = {name: self._trained_for(name) for name in systems}
        origin = first.origin(stages[-1])
        return Evidence(origin, splits, models, final, expansions, searched, learned, self._choices)

    def evaluate(self) -> str:
        """Build the report, and the models' cards from it; returns what the terminal shows."""
        artifact = report(self.run, self.evidence)
        metrics = metrics_of(artifact) if self.split == "test" else None
        for name in self.config.models:
            self.first.publish(name, metrics)
        chain.write(self.run.root, artifact.path.name, self.run.used)
        return closing(self.run.root, artifact, next_steps(self.evidence))
