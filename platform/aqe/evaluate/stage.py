"""The stage that evaluates: greedy expansions of held-out queries by each model, searched, compared, reported."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe.align.curves import plot_curves
from aqe.artifact import Artifact, digest, read_parquet, write_text
from aqe.card import write_card
from aqe.config.pipeline import STAGES, PriceConfig
from aqe.evaluate.compare import System, evaluate
from aqe.evaluate.console import console_examples, console_table
from aqe.evaluate.report import ReportContext, write_report
from aqe.evaluate.runs import write_qrels, write_run
from aqe.evaluate.systems import hits, search, sources, system
from aqe.observe.cost import money
from aqe.pipeline import Pipeline
from aqe.sample.prompts import resolve


@dataclass(frozen=True)
class Evaluation:
    """A finished report: its artifact, and what the terminal shows."""

    report: Artifact
    text: str


def evaluate_expander(pipeline: Pipeline) -> Evaluation:
    """Build the report of all systems, and the models' cards. Asks the pipeline for everything before it."""
    config = pipeline.config
    split = config.evaluate.split
    queries = pipeline.ready(split)
    qrels = read_parquet(pipeline.judged(split).path / "qrels.parquet")
    compared, choices = sources(pipeline)
    found = {name: search(pipeline, name, source, queries, qrels) for name, source in compared.items()}
    systems = [system(name, compared[name], found[name], queries, qrels) for name in compared]

    def build(out: Path) -> dict[str, Any]:
        metrics = evaluate(queries, systems, config.evaluate) | {"chosen_on_dev": choices}
        _write_runs(out, found, qrels)
        context = _context(pipeline, queries, systems, choices, out)
        write_report(out, metrics, context)
        table = console_table(metrics)
        examples = console_examples(queries, systems, metrics)
        write_text(f"{table}\n\n{examples}\n", out / "summary.txt")
        return {"queries": queries.num_rows, "systems": len(systems)}

    report = pipeline.make(
        "report",
        config={**config.evaluate.model_dump(mode="json"), "run": config.name},
        inputs={
            **found,
            "choices": digest(choices),
            "models": digest([pipeline.model(m).fingerprint for m in config.models]),
        },
        packages=("scipy", "ir-measures"),
        build=build,
    )
    _point(pipeline.root / "report", report.path)
    if split == "test":
        metrics = json.loads((report.path / "metrics.json").read_text())
        for name in config.models:
            write_card(pipeline, name, pipeline.model(name).path / "model", metrics)
    return Evaluation(report, _closing(pipeline, report))


def _write_runs(out: Path, found: Mapping[str, Artifact], qrels: pa.Table) -> None:
    (out / "runs").mkdir(parents=True, exist_ok=True)
    write_qrels(out / "runs" / "qrels.txt", qrels)
    for name, artifact in found.items():
        write_run(out / "runs" / f"{name}.trec", hits(artifact), name)


def _artifacts(pipeline: Pipeline) -> list[Artifact]:
    """What the run's numbers come from, in the order of the loop."""
    samples = pipeline.candidates()
    aligned = [pipeline.model(name) for name in _trained(pipeline)]
    first = [pipeline.corpus, pipeline.queries, pipeline.index, *(pipeline.judged(s) for s in ("train", "dev", "test"))]
    return [*first, samples, pipeline.ranks("train", samples, "rank_train"), pipeline.preferences, *aligned]


def _trained(pipeline: Pipeline) -> list[str]:
    """Every training stage of the run by the model that it ends in: of RSFT + DPO, RSFT too."""
    names = (STAGES[model][: i + 1] for model in pipeline.config.models for i in range(len(STAGES[model])))
    return list(dict.fromkeys("_".join(stages) for stages in names))


def _context(
    pipeline: Pipeline, queries: pa.Table, systems: list[System], choices: Mapping[str, Any], out: Path
) -> ReportContext:
    config = pipeline.config
    artifacts = _artifacts(pipeline)
    served = resolve(config.prompt)
    expanded = [pipeline.greedy(config.evaluate.split, served, name) for name in config.models]
    samples = pipeline.candidates().stats
    trained = _trained(pipeline)
    tables = {name: read_parquet(pipeline.model(name).path / "curves.parquet") for name in trained}
    curves = out / "curves.png"
    plot_curves(curves, tables)
    n = max(samples["candidates"], 1)
    return ReportContext(
        title=f"Aligned query expansion: {config.name}",
        subtitle=f"{pipeline.base.source}, {queries.num_rows:,} {config.evaluate.split} queries, "
        f"{pipeline.index.stats['passages']:,} passages",
        queries=queries,
        systems=systems,
        query_weight=config.rank.query_weight,
        distinct_words=config.rank.distinct_words,
        examples=config.evaluate.examples,
        settings=config.model_dump(mode="json", exclude_defaults=True, exclude={"runs_dir", "name"}),
        stages=[_stage_row(a, config.price_per_hour) for a in [*artifacts, *expanded]],
        curves=[(curves, "Training curves of each stage, by the model that it ends in")],
        sampling={
            "candidates": samples["candidates"],
            "truncated at the token limit": f"{samples['truncated'] / n:.1%}",
            "empty": f"{samples['empty'] / n:.1%}",
            "said before by another candidate of the query": f"{samples['duplicate'] / n:.1%}",
            "tokens": samples["tokens"],
            "engine": samples["engine"],
            "chosen on dev": choices,
        },
        preferences={k: v for k, v in pipeline.preferences.stats.items() if not k.endswith(("_seconds", "_hours"))},
        alignment={name: _training(pipeline.model(name)) for name in trained},
        dead_letters={a.manifest["stage"]: _dead(a) for a in artifacts},
        paths={name: str(pipeline.model(name).path / "model") for name in config.models},
        next_steps=next_steps(pipeline),
        docs=_passages(pipeline, queries),
    )


def _dead(artifact: Artifact) -> int:
    """Rows of a stage that could not be processed, whatever the stage calls them."""
    return sum(int(artifact.stats.get(name, 0)) for name in ("dead", "dead_rows", "unknown_positives"))


def _training(model: Artifact) -> dict[str, Any]:
    """Of a model's last stage: how far it moved. KL (nats a token) is exact over the vocabulary, on chosen texts."""
    shown = ("rows", "steps", "first_loss", "last_loss", "last_reward_margin", "last_reward_accuracy", "kl_per_token")
    moved = ("logp_change", "logp_change_chosen", "logp_change_rejected", "tokens_per_second")
    return {key: model.stats[key] for key in (*shown, *moved) if key in model.stats}


def _stage_row(artifact: Artifact, price: PriceConfig) -> dict[str, Any]:
    stats = artifact.stats
    counts = {
        k: stats[k]
        for k in ("passages", "judged", "candidates", "ranks", "rsft_rows", "dpo_pairs", "rows", "steps")
        if k in stats
    }
    rates = {k.replace("_per_second", "/s"): v for k, v in stats.items() if k.endswith("_per_second")}
    rates |= {"CPU hours": stats["cpu_hours"], "GPU hours": stats["gpu_hours"]}
    if (cost := money(stats, price)) is not None:
        rates["cost"] = cost
    return {"stage": artifact.manifest["stage"], "seconds": stats["wall_seconds"], "counts": counts, "rates": rates}


def _passages(pipeline: Pipeline, queries: pa.Table) -> dict[str, tuple[str, str]]:
    """Title and text of the passages that queries name as relevant."""
    wanted = {docid for ids in queries["positives"].to_pylist() for docid in ids or ()}
    found: dict[str, tuple[str, str]] = {}
    for path in sorted((pipeline.corpus.path / "data").glob("*.parquet")):
        data = read_parquet(path)
        data = data.filter(pa.array([d in wanted for d in data["docid"].to_pylist()], pa.bool_()))
        columns = (data[c].to_pylist() for c in ("docid", "title", "text"))
        found |= {docid: (title, text) for docid, title, text in zip(*columns, strict=True)}
    return found


def _closing(pipeline: Pipeline, report: Artifact) -> str:
    """The table, some examples, where the report lies, what to do next."""
    where = pipeline.root / "report"
    steps = "\n".join(f"  * {step}" for step in next_steps(pipeline))
    summary = (report.path / "summary.txt").read_text()
    return f"\n{summary}\nReport: {where / 'report.html'}\n        {where / 'report.md'}\n\nNext:\n{steps}\n"


def next_steps(pipeline: Pipeline) -> list[str]:
    """What a reader may want to do now."""
    config = pipeline.config
    model = pipeline.model(config.models[-1]).path / "model"
    query = pipeline.ready(config.evaluate.split)["text"][0].as_py().replace('"', "").replace("'", "")
    code = f'from aqe import Expander; print(Expander.load("{model}").expand("{query}"))'
    return [
        f"Expand a query: PYTHONPATH=platform .venv/bin/python -c '{code}'",
        *(["A result with tight intervals: make quickstart"] if config.name == "demo" else []),
        "Another β, everything before alignment reused: --set align.dpo.beta=0.3",
        "Your own corpus and model: a config of ten lines, see README.md",
    ]


def _point(link: Path, target: Path) -> None:
    """Let `link` name the newest report."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    part.replace(link)
