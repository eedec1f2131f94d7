"""The model card of an aligned model: data, prompts, index, settings and, once they are measured, results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from aqe.align.layout import STATS
from aqe.align.stage import PACKAGES
from aqe.artifact import versions
from aqe.config.data import PACKAGE, is_path
from aqe.evaluate.evidence import Origin
from aqe.evaluate.measures import COLUMNS
from aqe.evaluate.systems import LABELS
from aqe.prompts import load_tokenizer, render, resolve
from aqe.report.notice import synthetic_notice
from aqe.storage import put


def write_card(origin: Origin, name: str, model_dir: Path, metrics: Mapping[str, Any] | None = None) -> None:
    """Write `model_dir`/README.md for the model `name`, with results where `metrics` (a report's) has some of it."""
    config, prompt = origin.config, resolve(origin.config.prompt)
    write_model_card(
        model_dir,
        title=f"AQE {LABELS.get(name) or ' + '.join(_stages(name)).upper()}: {config.name}",
        base_model=origin.base.source,
        license=origin.base.license,
        example=render(prompt, "(the query)", load_tokenizer(origin.base.path)),
        facts=_facts(origin, name, model_dir) | ({} if metrics is None else _results(origin, name, metrics)),
    )


def _stages(name: str) -> list[str]:
    """What a model was trained by, in order: each further round of DPO is one more."""
    return [part for part in name.split("_") if part in ("rsft", "dpo")]


def _facts(origin: Origin, name: str, model_dir: Path) -> dict[str, dict[str, Any]]:
    """What the model comes from."""
    config, preferences = origin.config, origin.preferences
    sampling, align, stats = origin.prompt, config.align, preferences.stats
    notice = synthetic_notice(config, origin.base.source)
    return {
        "Data": {
            **({} if notice is None else {"queries": notice}),
            "corpus": f"{origin.index.stats['passages']} passages, artifact {origin.corpus.path.name}",
            "training queries": stats["queries"],
            "preferences": f"{stats['rsft_rows']} targets and {stats['dpo_pairs']} pairs, {preferences.path.name}",
            "samples": origin.samples.path.name,
            "pair policy": config.prefer.model_dump(mode="json"),
        },
        "Sampling": {
            "prompt": f"{sampling.name}: {sampling.template}",
            **config.sample.model_dump(mode="json", exclude={"prompt", "queries_per_unit"}),
        },
        "Index": {
            "name": origin.index.path.name,
            **dict(zip(("k1", "b"), origin.bm25.chosen, strict=True)),
            "k1 and b": origin.bm25.why,
            "language": config.index.language,
            **config.rank.model_dump(include={"query_weight", "distinct_words"}),
        },
        "Settings": {
            "stages": _stages(name),
            **{f"{stage}.{k}": v for stage in _stages(name) for k, v in getattr(align, stage).model_dump().items()},
            "adapters": "none, all weights were trained" if align.lora is None else align.lora.model_dump(),
            "precision": json.loads((model_dir.parent / STATS).read_text())["precision"],
            **align.model_dump(include={"zero_stage", "max_length", "seed"}),
            **versions(*PACKAGES),
        },
    }


def _results(origin: Origin, name: str, metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    measured = metrics["systems"][name]
    values = {m: f"{measured[m]['value']:.4f} [{measured[m]['low']:.4f}, {measured[m]['high']:.4f}]" for m in COLUMNS}
    if (leakage := measured["leakage_share"]) is not None:
        values["expansions that give an answer away"] = f"{leakage:.1%}"
    if (seeds := measured["num_seeds"]) > 1:
        values["seeds"] = f"the numbers above are means of {seeds} training seeds; these are the weights of the first"
        values["MRR of this one"] = f"{measured['of_seeds'][0]['mrr']:.4f}"
    split = origin.config.evaluate.split
    kind = f"synthetic {split}" if origin.config.queries.synthetic(split) else split
    return {f"Results ({metrics['num_queries']} {kind} queries)": values}


def write_model_card(
    model_dir: Path,
    *,
    title: str,
    facts: Mapping[str, Mapping[str, Any]],
    base_model: str,
    license: str | None = None,
    example: str | None = None,
) -> None:
    """Write README.md, the Hugging Face model card.

    `facts`: heading -> rows of a table (name -> value), for instance data, prompt, index, settings, results; nothing
    is written that is not in it. `license`: of the weights, as the Hub writes it (apache-2.0); None says that it is
    not known. `example`: a prompt, verbatim.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["query-expansion", "information-retrieval", "bm25", "aqe", "trl"],
        license=license or "unknown",
        # The Hub takes a model id here, not a path of somebody's machine.
        base_model=None if is_path(base_model) or base_model.startswith(PACKAGE) else base_model,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        "This model writes one expansion of a search query: words that the passage which answers it is likely to hold. "
        "It was aligned with the ranks that BM25 gave its own candidates (Aligned Query Expansion).",
        f"Start model: `{base_model}`. License of the weights: {license or 'unknown, see the start model'}.",
    ]
    if example is not None:
        parts.append(f"## Prompt\n\n```text\n{example}\n```")
    parts += [_section(heading, rows) for heading, rows in facts.items()]
    put(model_dir / "README.md", ModelCard("\n\n".join(parts) + "\n").save)


def _section(heading: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {heading}", "", "| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """One table cell: numbers short, lists joined, nothing that would break the table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = ", ".join(_cell(item) for item in value)
    else:
        text = str(value)
    return text.replace("|", "\\|").replace("\n", "⏎")
