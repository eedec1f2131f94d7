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
from aqe.evaluate.compare import CONTROLS
from aqe.evaluate.evidence import Origin
from aqe.evaluate.measures import COLUMNS
from aqe.evaluate.systems import LABELS
from aqe.prompts import load_tokenizer, render, resolve
from aqe.report.console import p_text, points, with_interval
from aqe.report.notice import synthetic_notice
from aqe.report.verdict import verdict
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
        facts=_facts(origin, name, model_dir),
        results=None if metrics is None else _results(origin, name, metrics),
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


def _results(origin: Origin, name: str, metrics: Mapping[str, Any]) -> str:
    """The verdict, and the model's row of the table with those of its controls."""
    split = origin.config.evaluate.split
    kind = f"synthetic {split}" if origin.config.queries.synthetic(split) else split
    return "\n\n".join([f"## Results ({metrics['num_queries']} {kind} queries)", *results_of(metrics, name)])


def results_of(metrics: Mapping[str, Any], name: str) -> list[str]:
    """Markdown of what a report measured of the model `name`, and of the controls that it is compared with."""
    systems, total = metrics["systems"], metrics["num_queries"]
    head = ["points, MRR with its interval", *COLUMNS.values(), "this model minus it, MRR", "p"]
    rows = [head, ["---", *["---:"] * (len(COLUMNS) + 2)]]
    for system in (*CONTROLS, name):
        if system not in systems:
            continue
        measured, pair = systems[system], f"{name}_vs_{system}"
        cells = [with_interval(measured[m]) if m == "mrr" else points(measured[m]["value"]) for m in COLUMNS]
        apart = ["", ""]
        if pair in metrics["differences"]:
            found = metrics["differences"][pair]["mrr"]
            value, low, high = (points(found[key], True) for key in ("value", "low", "high"))
            p = p_text(metrics["comparisons"][pair]["p_value"], metrics["bootstrap"])
            apart = [f"{value} [{low} {high}]", p]
        label = measured["label"] + ("" if measured["num_queries"] == total else f", {measured['num_queries']} queries")
        rows.append([f"**{label}**" if system == name else label, *cells, *apart])
    table = "\n".join(f"| {' | '.join(map(markdown_cell, row))} |" for row in rows)
    own = systems[name]
    notes = [f"Points are fractions x 100; intervals are of {metrics['confidence']:.0%}."]
    if (leakage := own["leakage_share"]) is not None:
        notes.append(f"Expansions that give an answer away: {leakage:.1%}.")
    if (seeds := own["num_seeds"]) > 1:
        of_this = points(own["of_seeds"][0]["mrr"])
        notes.append(
            f"Its row is the mean of {seeds} training seeds; these weights are the first's, whose MRR is {of_this}."
        )
    return [verdict(metrics, name).text, table, " ".join(notes)]


def write_model_card(
    model_dir: Path,
    *,
    title: str,
    facts: Mapping[str, Mapping[str, Any]],
    base_model: str,
    license: str | None = None,
    example: str | None = None,
    results: str | None = None,
) -> None:
    """Write README.md, the Hugging Face model card.

    More than six arguments: they are what a card says. `results`: Markdown of what was measured, before all facts.
    `facts`: heading -> rows of a table (name -> value), for instance data, prompt, index, settings; nothing
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
    if results is not None:
        parts.append(results)
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
    return markdown_cell(text)


def markdown_cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("|", "\\|").replace("\n", "⏎")
