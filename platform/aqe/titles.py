"""What people call a stage: plain words that tell it from every other stage of a run.

Two stages may share the name that their directories begin with: `expand_dev_base` is there once per prompt. A title is
made from all that names an artifact, and is no part of that name.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from aqe.artifact import MANIFEST, Artifact, Wanted, look

#: Stages that a run has once, or once per training seed.
_TITLES = {
    "corpus": "read the corpus",
    "queries": "read the queries",
    "build_index": "build Lucene's index",
    "build_index_vectors": "build Lucene's index for RM3",
    "build_impacts": "build the impact index",
    "build_preferences": "choose what to train on",
    "train_filter": "train the filter",
    "report": "write the report",
    "search_bm25": "search with the plain queries",
    "search_bm25_tuned": "search with the plain queries, BM25 tuned",
    "search_bm25_rm3": "search with RM3",
    "expansions_dev_prompts": "collect dev's expansions by every prompt",
    "expansions_dev_cuts": "cut dev's expansions to every length",
    "expansions_train_unions": "join train's candidates, by every number",
    "rank_dev_prompts": "rank dev's expansions by every prompt",
    "rank_dev_cuts": "rank dev's expansions of every length",
    "rank_train_unions": "rank train's joined candidates",
    "synthetic_passages": "choose passages to ask about",
    "synthetic_sample": "ask the base model for queries",
    "synthetic_drafts": "clean the queries that it wrote",
    "synthetic_search": "search with the queries that it wrote",
    "synthetic_queries": "keep the queries that can teach",
    "align_rsft": "train RSFT",
    "align_dpo": "train DPO",
    "align_rsft_random": "train RSFT on random candidates",
}
_MADE = {
    "cut": "cut {split}'s expansions to the best length",
    "union": "join {split}'s candidates",
    "filtered": "choose from {split}'s candidates by the filter",
    "best_of_n": "choose {split}'s best candidates, which is the oracle",
}


def title(wanted: Wanted) -> str:
    """What people call the stage that makes this. Its own name in words where it is none of aqe's own stages."""
    text = _TITLES.get(wanted.stage)
    for pattern, words in _PATTERNS.items():
        if text is None and (found := re.fullmatch(pattern, wanted.stage)):
            text = words(found.groupdict(), wanted.config)
    if text is None:
        text = wanted.stage.replace("_", " ")
    return f"{text}{_seed(wanted)}"


def title_of(artifact: Artifact) -> str:
    """The same of what was made, by an older version too, which did not note it."""
    if noted := artifact.manifest.get("title"):
        return str(noted)
    beside = (artifact.path.parent / name for name in artifact.parents)
    parents = tuple(look(path) for path in beside if (path / MANIFEST).exists())
    return title(Wanted(artifact.stage, artifact.manifest["config"], {}, parents))


def _seed(wanted: Wanted) -> str:
    """`, seed 1`: of the training, or else the drawing, that the artifact comes from. Nothing for the first seed."""
    own = f", seed {seed}" if (seed := wanted.config.get("seed")) else ""
    if wanted.stage.startswith("align_"):
        return own
    if wanted.stage == "report":
        return ""
    read = (*wanted.inputs.values(), *wanted.parents)
    titles = (title_of(one) for one in read if isinstance(one, Artifact))
    drawn = own if wanted.stage.startswith("sample_") else ""
    return next((found.group() for text in titles if (found := re.search(r", seed \d+$", text))), drawn)


def _trained(names: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """`rsft_dpo_dpo` is DPO after RSFT and DPO."""
    *before, last = names["model"].upper().split("_")
    return f"train {last} after {' and '.join(before)}"


def _model(name: str) -> str:
    return "the base model" if name == "base" else name


def _asked(names: Mapping[str, str], config: Mapping[str, Any]) -> str:
    number, prompt = config["num_samples"], config["prompt"]["name"]
    return f"draw {number} candidates for {names['split']} from {_model(names['model'] or 'base')}, prompt {prompt}"


def _expanded(names: Mapping[str, str], config: Mapping[str, Any]) -> str:
    return f"expand {names['split']} with {_model(names['model'])}, prompt {config['prompt']['name']}"


def _tuned(names: Mapping[str, str], config: Mapping[str, Any]) -> str:
    points = config["points"]
    first = ", ".join(f"{value:g}" for value in points[0])
    return f"try {len(points)} settings of {names['what'].upper()} on dev, from {first}"


def _ranked(names: Mapping[str, str], config: Mapping[str, Any]) -> str:
    return f"rank {names['split']}'s candidates" + (f" from {_model(names['model'])}" if names["model"] else "")


_SPLIT = "(?P<split>train|dev|test)"
_PATTERNS: Mapping[str, Callable[[Mapping[str, str], Mapping[str, Any]], str]] = {
    "judge_queries": lambda names, config: f"judge {config['split']}'s queries",
    "tune_(?P<what>bm25|rm3)": _tuned,
    f"sample_{_SPLIT}(_(?P<model>.+))?": _asked,
    f"rank_{_SPLIT}(_(?P<model>.+))?": _ranked,
    "align_(?P<model>.+)": _trained,
    f"expand_{_SPLIT}_(?P<model>.+)": _expanded,
    f"expansions_{_SPLIT}_(?P<how>{'|'.join(_MADE)})": lambda names, config: _MADE[names["how"]].format(**names),
    "search_(?P<system>.+)": lambda names, config: f"search with the expansions of {names['system']}",
}
