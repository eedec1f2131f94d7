"""The stage that reports: what the searches found, compared, on a page, in files, and in the terminal."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from aqe.align.curves import plot_curves
from aqe.artifact import MANIFEST, Artifact, digest, look, parquet_files, read_parquet, write_text
from aqe.config.pipeline import PriceConfig
from aqe.dead_letters import letters_of, listed, reasons_of
from aqe.evaluate.compare import System, evaluate
from aqe.evaluate.evidence import Evidence
from aqe.evaluate.runs import write_qrels, write_run
from aqe.evaluate.systems import hits, systems
from aqe.observe.cost import money
from aqe.report.closing import NEXT_STEPS, SUMMARY
from aqe.report.console import console_examples, console_table
from aqe.report.notice import synthetic_notice
from aqe.report.page import ReportContext, write_report
from aqe.run import Run
from aqe.runs import REPORT
from aqe.storage import put

#: Raise it when the same searches give other numbers than before.
VERSION = 3
#: Phases of a stage that take less are not shown.
SHOWN_SECONDS = 1.0


def report(run: Run, evidence: Evidence) -> Artifact:
    """metrics.json, per_query.parquet, report.html, report.md, plots/, runs/*.trec, summary.txt, next_steps.txt.

    `report` in the run's directory names the newest one.
    """
    config = evidence.origin.config
    choices = {name: choice.as_dict() for name, choice in evidence.choices.items()}

    def build(out: Path) -> dict[str, Any]:
        queries = read_parquet(evidence.reported.path / "queries.parquet")
        qrels = read_parquet(evidence.reported.path / "qrels.parquet")
        compared = systems(evidence, queries, qrels)
        metrics = evaluate(queries, compared, config.evaluate)
        metrics |= {"split": config.evaluate.split, "chosen_on_dev": choices, "made": _made(evidence)}
        _write_runs(out, evidence.searched, qrels)
        write_report(out, metrics, _context(evidence, queries, compared, out))
        notice = textwrap.fill(_notice(evidence), 118)
        parts = [notice, console_table(metrics), console_examples(queries, compared, metrics)]
        write_text("\n\n".join(filter(None, parts)) + "\n", out / SUMMARY)
        write_text("\n".join(next_steps(evidence)) + "\n", out / NEXT_STEPS)
        return {"queries": queries.num_rows, "systems": len(compared)}

    artifact = run.make(
        "report",
        config={
            **config.evaluate.model_dump(mode="json"),
            "run": config.name,
            "version": VERSION,
            "price_per_hour": config.price_per_hour.model_dump(),
        },
        inputs={
            **{
                _of_seed(name, i): one for name, searched in evidence.searched.items() for i, one in enumerate(searched)
            },
            "choices": digest(choices),
            "models": digest([evidence.models[name].fingerprint for name in evidence.final.values()]),
        },
        packages=("numpy", "ir-measures"),
        build=build,
    )
    put(run.root / REPORT, lambda link: link.symlink_to(artifact.path.name))
    return artifact


def _notice(evidence: Evidence) -> str:
    return synthetic_notice(evidence.origin.config, evidence.origin.base.source) or ""


def metrics_of(artifact: Artifact) -> dict[str, Any]:
    """metrics.json of a report."""
    metrics: dict[str, Any] = json.loads((artifact.path / "metrics.json").read_text())
    return metrics


def _of_seed(name: str, number: int) -> str:
    """A system as one of its seeds made it; the first is called as the system is."""
    return name if number == 0 else f"{name}.seed{number}"


def _made(evidence: Evidence) -> dict[str, Any]:
    """What each system took for one seed, the candidates of the base model apart: hours of training (with what was
    drawn for it), of writing and of searching, and the rows and steps of each stage that was trained."""
    made = {}
    for name, searched in evidence.searched.items():
        learned, written = evidence.trained[name], [one for one in evidence.expansions[name] if one is not None]
        took = [*(stage for of_seed in learned for stage in of_seed), *searched, *written]
        hours = {kind: sum(one.stats.get(f"{kind}_hours", 0.0) for one in took) for kind in ("cpu", "gpu")}
        rows = [one.stats.get("rows", one.stats.get("pairs")) for one in (learned[0] if learned else ())]
        made[name] = {
            **{f"{kind}_hours": round(spent / len(searched), 5) for kind, spent in hours.items()},
            "training_rows": [count for count in rows if count is not None],
            "training_steps": _steps(learned[0] if learned else ()),
        }
    return made


def _steps(learned: Sequence[Artifact]) -> dict[str, int]:
    """Steps of each training of a model, in their order: `RSFT`, `DPO`, of several rounds `DPO 2` and so on."""
    steps: dict[str, int] = {}
    for stage in learned:
        if stage.stage.startswith("align_"):
            kind = "DPO" if stage.stage.endswith("dpo") else "RSFT"
            number = sum(name.startswith(kind) for name in steps) + 1
            steps[kind if number == 1 else f"{kind} {number}"] = stage.stats["steps"]
    return steps


def _write_runs(out: Path, searched: Mapping[str, tuple[Artifact, ...]], qrels: pa.Table) -> None:
    (out / "runs").mkdir(parents=True, exist_ok=True)
    write_qrels(out / "runs" / "qrels.txt", qrels)
    for name, of_seeds in searched.items():
        for number, artifact in enumerate(of_seeds):
            run = _of_seed(name, number)
            write_run(out / "runs" / f"{run}.trec", hits(artifact.read()), run)


def _context(evidence: Evidence, queries: pa.Table, compared: list[System], out: Path) -> ReportContext:
    origin, config = evidence.origin, evidence.origin.config
    samples = origin.samples.stats
    curves = out / "curves.png"
    plot_curves(curves, {name: read_parquet(m.path / "curves.parquet") for name, m in evidence.models.items()})
    total = max(samples["candidates"], 1)
    before = _stages(evidence)
    expanded = [one for name in config.models if (one := evidence.expansions[name][0]) is not None]
    return ReportContext(
        title=f"Aligned query expansion: {config.name}",
        subtitle=f"{origin.base.source}, {queries.num_rows:,} {config.evaluate.split} queries, "
        f"{origin.index.stats['passages']:,} passages",
        notice=_notice(evidence),
        queries=queries,
        systems=compared,
        query_weight=config.rank.query_weight,
        distinct_words=config.rank.distinct_words,
        examples=config.evaluate.examples,
        settings=config.model_dump(mode="json", exclude_defaults=True, exclude={"runs_dir", "name"}),
        stages=[_stage_row(artifact, config.price_per_hour) for artifact in [*before, *expanded]],
        curves=[(curves, "Training curves of each stage, by the model that it ends in")],
        sampling={
            "candidates": samples["candidates"],
            "truncated at the token limit": f"{samples['truncated'] / total:.1%}",
            "empty": f"{samples['empty'] / total:.1%}",
            "with reasoning, which is cut off": f"{samples['reasoning'] / total:.1%}",
            "said before by another candidate of the query": f"{samples['duplicate'] / total:.1%}",
            "tokens": samples["tokens"],
            "engine": samples["engine"],
            "chosen on dev": {name: choice.as_dict() for name, choice in evidence.choices.items()},
        },
        preferences=_preferences(origin.preferences),
        alignment={name: _training(model) for name, model in evidence.models.items()},
        dead_letters=_dead_letters([*before, *_given(evidence.expansions), *_given(evidence.searched)]),
        paths={name: str(evidence.models[full].path / "model") for name, full in evidence.final.items()},
        next_steps=next_steps(evidence),
        docs=_passages(origin.corpus, queries),
    )


def _stages(evidence: Evidence) -> list[Artifact]:
    """What the run's numbers come from, in the order of the loop."""
    origin = evidence.origin
    first = [origin.corpus, *_above(origin.queries), origin.queries, origin.index, *evidence.judged.values()]
    every = [*first, origin.samples, origin.ranks, origin.preferences, *evidence.models.values()]
    return list({artifact.path: artifact for artifact in every}.values())


def _above(artifact: Artifact) -> list[Artifact]:
    """What an artifact was made from, and that from; of queries that a model wrote, the stages that made them."""
    there = [artifact.path.parent / name for name in artifact.parents]
    parents = [look(path) for path in there if (path / MANIFEST).exists()]
    return [one for parent in parents for one in (*_above(parent), parent)]


def _preferences(preferences: Artifact) -> dict[str, Any]:
    cost = ("busy_seconds", "wall_seconds", "phases", "cpu_hours", "gpu_hours", "workers", "queries_per_unit", "dead")
    return {name: value for name, value in preferences.stats.items() if name not in cost}


def _given(of_systems: Mapping[str, tuple[Artifact | None, ...]]) -> list[Artifact]:
    """What there is of all systems and seeds."""
    return [one for of_seeds in of_systems.values() for one in of_seeds if one is not None]


def _dead_letters(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Rows that could not be processed: in which stage, how many, why, and where they lie."""
    found = []
    for path, stage in {artifact.path: artifact.stage for artifact in artifacts}.items():
        if (letters := letters_of(path)) is not None:
            why = listed(reasons_of(letters))
            found += [{"stage": stage, "rows": rows, "reason": reason, "path": letters} for reason, rows in why.items()]
    return found


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
    # Of a stage that another run has finished, nothing was measured.
    phases = {name: spent for name, spent in stats.get("phases", {}).items() if spent >= SHOWN_SECONDS}
    return {
        "stage": artifact.stage,
        "seconds": stats["wall_seconds"],
        "phases": phases,
        "counts": counts,
        "rates": rates,
    }


def _passages(corpus: Artifact, queries: pa.Table) -> dict[str, tuple[str, str]]:
    """Title and text of the passages that queries name as relevant."""
    wanted = pc.unique(pc.list_flatten(queries["positives"]))
    files = [str(file) for file in parquet_files(corpus.path)]
    data = pads.dataset(files, format="parquet").to_table(filter=pc.field("docid").isin(wanted))
    columns = (data[name].to_pylist() for name in ("docid", "title", "text"))
    return {docid: (title, text) for docid, title, text in zip(*columns, strict=True)}


def next_steps(evidence: Evidence) -> list[str]:
    """What a reader may want to do now."""
    config = evidence.origin.config
    model = evidence.models[evidence.final[config.models[-1]]].path / "model"
    first = read_parquet(evidence.reported.path / "queries.parquet")["text"][0].as_py()
    query = first.replace('"', "").replace("'", "")
    return [
        f'Expand a query: aqe expand {model} "{query}"',
        *(["A result with tight intervals: aqe run --config quickstart"] if config.name == "demo" else []),
        "Another β, everything before alignment reused: --set align.dpo.beta=0.3",
        "Your own corpus and model: a configuration of ten lines, see the README",
    ]
