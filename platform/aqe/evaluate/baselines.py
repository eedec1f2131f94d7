"""The controls that a sceptic asks for, chosen on dev queries: the best prompt, and the best number of words of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from aqe.artifact import Artifact, digest
from aqe.config.sample import PromptConfig
from aqe.evaluate.expansions import cut
from aqe.pipeline import Pipeline
from aqe.sample.prompts import resolve


@dataclass(frozen=True)
class Choice:
    """What was tried on dev: name -> MRR, and the best of it (the first of equals)."""

    tried: Mapping[str, float]
    best: str


def expansions(samples: Artifact) -> dict[str, str]:
    """qid -> expansion of a greedy run."""
    data = samples.read()
    return dict(zip(data["qid"].to_pylist(), data["expansion"].to_pylist(), strict=True))


def choose_prompt(pipeline: Pipeline) -> tuple[PromptConfig, Choice]:
    """The prompt whose greedy expansions by the base model rank best on dev."""
    config = pipeline.config
    named = [resolve(p) for p in (config.prompt, config.sample_prompt, *config.evaluate.zero_shot_prompts)]
    prompts = list({prompt.name: prompt for prompt in named}.values())
    texts = {prompt.name: expansions(pipeline.greedy("dev", prompt)) for prompt in prompts}
    choice = _choose(pipeline, texts, "rank_dev_prompts")
    return next(prompt for prompt in prompts if prompt.name == choice.best), choice


def choose_cut(pipeline: Pipeline, prompt: PromptConfig) -> tuple[int, Choice]:
    """The number of words of that prompt's expansions that rank best on dev."""
    full = expansions(pipeline.greedy("dev", prompt))
    distinct = pipeline.config.rank.distinct_words
    texts = {
        str(words): {q: cut(t, words, distinct) for q, t in full.items()}
        for words in pipeline.config.evaluate.cut_words
    }
    choice = _choose(pipeline, texts, "rank_dev_cuts")
    return int(choice.best), choice


def _choose(pipeline: Pipeline, texts: Mapping[str, Mapping[str, str]], stage: str) -> Choice:
    """Rank every variant of every dev query at once: a variant is a candidate, numbered in the order of `texts`."""
    rows = [
        {"qid": qid, "sample_idx": i, "expansion": text}
        for i, variant in enumerate(texts.values())
        for qid, text in variant.items()
    ]
    inputs = {"expansions": digest(rows)}
    ranks = pipeline.rank_table("dev", pa.Table.from_pylist(rows), inputs, stage).read()
    index, rank = ranks["sample_idx"].to_numpy(), ranks["gold_rank"].to_numpy()
    tried = {name: round(float(np.mean(1 / rank[index == i])), 5) for i, name in enumerate(texts)}
    return Choice(tried, max(tried, key=tried.__getitem__))
