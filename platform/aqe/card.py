"""The model card of an aligned model: data, prompts, index, settings and, once they are measured, results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqe.align.export import write_model_card
from aqe.align.stage import STATS
from aqe.artifact import TRAINING_PACKAGES, versions
from aqe.config.pipeline import STAGES
from aqe.sample.prompts import render, resolve, template_tokenizer

if TYPE_CHECKING:
    from aqe.pipeline import Pipeline

TITLES = {"rsft": "RSFT", "dpo": "DPO", "rsft_dpo": "RSFT + DPO"}


def write_card(pipeline: "Pipeline", name: str, model_dir: Path, metrics: Mapping[str, Any] | None = None) -> None:
    """Write `model_dir`/README.md for the model `name`, with results where `metrics` (a report's) has some of it."""
    config = pipeline.config
    prompt, sampling = resolve(config.prompt), resolve(config.sample_prompt)
    preferences, align = pipeline.preferences, config.align
    stats = preferences.stats
    facts: dict[str, dict[str, Any]] = {
        "Data": {
            "corpus": f"{pipeline.index.stats['passages']} passages, artifact {pipeline.corpus.path.name}",
            "training queries": stats["queries"],
            "preferences": f"{stats['rsft_rows']} targets and {stats['dpo_pairs']} pairs, {preferences.path.name}",
            "samples": pipeline.candidates().path.name,
            "pair policy": config.prefer.model_dump(mode="json"),
        },
        "Sampling": {
            "prompt": f"{sampling.name}: {sampling.template}",
            **config.sample.model_dump(mode="json", exclude={"prompt", "queries_per_unit"}),
        },
        "Index": {
            "name": pipeline.index.path.name,
            **config.index.model_dump(include={"k1", "b", "language"}),
            **config.rank.model_dump(include={"query_weight", "distinct_words"}),
        },
        "Settings": {
            "stages": STAGES[name],
            **{f"{stage}.{k}": v for stage in STAGES[name] for k, v in getattr(align, stage).model_dump().items()},
            "adapters": "none, all weights were trained" if align.lora is None else align.lora.model_dump(),
            "precision": json.loads((model_dir.parent / STATS).read_text())["precision"],
            **align.model_dump(include={"zero_stage", "max_length", "seed"}),
            **versions(*TRAINING_PACKAGES),
        },
    }
    if metrics is not None:
        found = metrics["systems"][name]
        facts[f"Results ({metrics['num_queries']} {config.evaluate.split} queries)"] = {
            m: f"{found[m]['value']:.4f} [{found[m]['low']:.4f}, {found[m]['high']:.4f}]"
            for m in ("top_1", "top_5", "top_20", "top_100", "mrr", "ndcg_10")
        }
    write_model_card(
        model_dir,
        title=f"AQE {TITLES[name]}: {config.name}",
        base_model=pipeline.base.source,
        license=pipeline.base.license,
        example=render(prompt, "(the query)", template_tokenizer(prompt, pipeline.base.path)),
        facts=facts,
    )
