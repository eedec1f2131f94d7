"""The stage that evaluates: greedy expansions of held-out queries by each model, searched, compared, reported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aqe.align.curves import plot_curves
from aqe.align.export import write_model_card
from aqe.artifact import Artifact, digest, read_parquet
from aqe.config.pipeline import STAGES
from aqe.evaluate.baselines import Choice, choose_cut, choose_prompt, expansions
from aqe.evaluate.compare import System, evaluate
from aqe.evaluate.console import console_examples, console_table
from aqe.evaluate.expansions import cut
from aqe.evaluate.measures import ndcg_at_10
from aqe.evaluate.report import ReportContext, write_report
from aqe.evaluate.retrieve import retrieve
from aqe.evaluate.runs import write_qrels, write_run
from aqe.pipeline import Pipeline
from aqe.prefer.candidates import join
from aqe.rank.stage import ranker_pool
from aqe.sample.prompts import render, resolve

LABELS = {
    "bm25": "BM25, plain query",
    "zero_shot": "zero-shot, the prompt that is served",
    "zero_shot_best": "zero-shot, the best prompt on dev",
    "zero_shot_cut": "zero-shot, best prompt, cut to the best length on dev",
    "rsft": "RSFT",
    "dpo": "DPO",
    "rsft_dpo": "RSFT + DPO",
    "best_of_n": "best of n candidates (oracle)",
}


@dataclass(frozen=True)
class _Source:
    """A system's expansions (qid -> text; a query that is absent is not covered) and what they cost and come from."""

    texts: Mapping[str, str]
    seconds_per_query: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """A finished report: its artifact, and what the terminal shows."""

    report: Artifact
    text: str


def evaluate_expander(pipeline: Pipeline) -> Evaluation:
    """Build the report of all systems, and the models' cards. Asks the pipeline for everything before it."""
    config = pipeline.config
    split = config.evaluate.split
    pipeline.prepare()
    queries = pipeline.ready(split)
    qrels = read_parquet(pipeline.judged(split).path / "qrels.parquet")
    sources, choices = _sources(pipeline)
    found = {name: _retrieve(pipeline, name, source, queries, qrels) for name, source in sources.items()}
    systems = [_system(name, sources[name], found[name], queries, qrels) for name in sources]

    def build(out: Path) -> dict[str, Any]:
        metrics = evaluate(queries, systems, config.evaluate) | {"chosen_on_dev": choices}
        _write_runs(out, found, qrels)
        context = _context(pipeline, queries, systems, choices, out)
        write_report(out, metrics, context)
        table = console_table(metrics)
        examples = console_examples(queries, systems, metrics)
        (out / "summary.txt").write_text(f"{table}\n\n{examples}\n")
        _write_cards(pipeline, metrics)
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
    return Evaluation(report, (report.path / "summary.txt").read_text())


def _sources(pipeline: Pipeline) -> tuple[dict[str, _Source], dict[str, Any]]:
    config = pipeline.config
    split = config.evaluate.split
    served = resolve(config.prompt)
    queries = pipeline.ready(split)
    best, tried_prompts = choose_prompt(pipeline)
    words, tried_cuts = choose_cut(pipeline, best)
    zero, top = pipeline.greedy(split, served), pipeline.greedy(split, best)
    sources = {
        "bm25": _Source(dict.fromkeys(queries["qid"].to_pylist(), "")),
        "zero_shot": _Source(expansions(zero), _seconds(zero), f"prompt {served.name}"),
        "zero_shot_best": _Source(expansions(top), _seconds(top), f"prompt {best.name}"),
        "zero_shot_cut": _Source(
            {q: cut(t, words) for q, t in expansions(top).items()}, _seconds(top), f"prompt {best.name}, {words} words"
        ),
    }
    for name in config.models:
        run = pipeline.greedy(split, served, name)
        sources[name] = _Source(expansions(run), _seconds(run), f"prompt {served.name}")
    if config.evaluate.oracle_queries != 0:
        sources["best_of_n"] = _oracle(pipeline)
    choices = {"zero_shot_best": _tried(tried_prompts), "zero_shot_cut": _tried(tried_cuts)}
    return sources, choices


def _tried(choice: Choice) -> dict[str, Any]:
    return {"chosen": choice.best, "dev_mrr": dict(choice.tried)}


def _seconds(run: Artifact) -> float:
    """Seconds of one worker for one query, in batches."""
    return float(run.stats["busy_seconds"] / max(run.stats["rows_in"], 1))


def _oracle(pipeline: Pipeline) -> _Source:
    """The best-ranked candidate of each query: what a perfect choice among n would give."""
    config = pipeline.config
    split = config.evaluate.split
    samples = pipeline.candidates(split, config.evaluate.oracle_queries)
    ranks = pipeline.ranks(split, samples, f"rank_{split}")
    prompts = dict.fromkeys(samples.read()["qid"].to_pylist(), "")
    best = {j.qid: j.best_first()[0].expansion for j in join(prompts, samples.read(), ranks.read(), config.prefer)}
    note = f"{config.sample.num_samples} candidates, the best chosen by its true rank"
    return _Source(best, _seconds(samples), note)


def _retrieve(pipeline: Pipeline, name: str, source: _Source, queries: pa.Table, qrels: pa.Table) -> Artifact:
    """Search a system's composed queries."""
    config = pipeline.config
    relevant: dict[str, list[str]] = {}
    for qid, docid, grade in zip(*(qrels[c].to_pylist() for c in ("qid", "docid", "relevance")), strict=True):
        if grade > 0:
            relevant.setdefault(qid, []).append(docid)
    rows = [
        {"qid": qid, "query": text, "expansion": source.texts[qid], "relevant": relevant[qid]}
        for qid, text in zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True)
        if qid in source.texts
    ]
    stage = f"search_{name}"
    return pipeline.make(
        stage,
        config={
            **config.rank.model_dump(include={"engine", "query_weight"}),
            **config.index.model_dump(include={"k1", "b"}),
        },
        inputs={"index": pipeline.index, "queries": digest(rows)},
        build=lambda out: retrieve(
            out,
            rows,
            index=pipeline.index.path,
            index_config=config.index,
            config=config.rank,
            pool=ranker_pool(config.rank, pipeline.num_cpus),
            max_dead_share=config.max_dead_share,
            say=pipeline.say,
            stage=stage,
        ),
    )


def _hits(found: Artifact) -> dict[str, list[tuple[str, float]]]:
    data = found.read()
    columns = (data[c].to_pylist() for c in ("qid", "docids", "scores"))
    return {qid: list(zip(docids, scores, strict=True)) for qid, docids, scores in zip(*columns, strict=True)}


def _system(name: str, source: _Source, found: Artifact, queries: pa.Table, qrels: pa.Table) -> System:
    data = found.read()
    qids = data["qid"].to_pylist()
    place = {qid: i for i, qid in enumerate(queries["qid"].to_pylist())}
    everything = len(qids) == len(place)
    search = float(np.mean(data["search_ms"].to_numpy())) / 1000
    return System(
        name,
        LABELS[name],
        data["gold_rank"].to_numpy().astype(np.int32),
        ndcg_at_10(_hits(found), qrels, qids),
        expansions=None if name == "bm25" else data["expansion"].to_pylist(),
        index=None if everything else np.array([place[qid] for qid in qids], dtype=np.int64),
        seconds_per_query=search + (source.seconds_per_query or 0.0),
        note=source.note,
    )


def _write_runs(out: Path, found: Mapping[str, Artifact], qrels: pa.Table) -> None:
    (out / "runs").mkdir(parents=True, exist_ok=True)
    write_qrels(out / "runs" / "qrels.txt", qrels)
    for name, artifact in found.items():
        write_run(out / "runs" / f"{name}.trec", _hits(artifact), name)


def _artifacts(pipeline: Pipeline) -> list[Artifact]:
    """What the run's numbers come from, in the order of the loop."""
    samples = pipeline.candidates()
    aligned: dict[str, Artifact] = {}
    for name in pipeline.config.models:
        model = pipeline.model(name)
        aligned[model.path.name] = model
    first = [pipeline.corpus, pipeline.queries, pipeline.index, *(pipeline.judged(s) for s in ("train", "dev", "test"))]
    return [*first, samples, pipeline.ranks("train", samples, "rank_train"), pipeline.preferences, *aligned.values()]


def _context(
    pipeline: Pipeline, queries: pa.Table, systems: list[System], choices: Mapping[str, Any], out: Path
) -> ReportContext:
    config = pipeline.config
    artifacts = _artifacts(pipeline)
    samples = pipeline.candidates().stats
    tables = {name: read_parquet(pipeline.model(name).path / "curves.parquet") for name in config.models}
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
        examples=config.evaluate.examples,
        settings=config.model_dump(mode="json", exclude_defaults=True, exclude={"runs_dir", "name"}),
        stages=[_stage_row(a) for a in artifacts],
        curves=[(curves, "Training curves of each model's last stage")],
        sampling={
            "candidates": samples["candidates"],
            "truncated at the token limit": f"{samples['truncated'] / n:.1%}",
            "empty": f"{samples['empty'] / n:.1%}",
            "said before by another candidate of the query": f"{samples['duplicate'] / n:.1%}",
            "tokens": samples["tokens"],
            "engine": samples["engine"],
            "chosen on dev": choices,
        },
        preferences={k: v for k, v in pipeline.preferences.stats.items() if k != "wall_seconds"},
        alignment={name: _training(pipeline.model(name)) for name in config.models},
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


def _stage_row(artifact: Artifact) -> dict[str, Any]:
    stats = artifact.stats
    counts = {
        k: stats[k]
        for k in ("passages", "judged", "candidates", "ranks", "rsft_rows", "dpo_pairs", "rows", "steps")
        if k in stats
    }
    rates = {k.replace("_per_second", "/s"): v for k, v in stats.items() if k.endswith("_per_second")}
    if "worker_hours_per_1000_queries" in stats:
        rates["worker hours per 1,000 queries"] = stats["worker_hours_per_1000_queries"]
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


def next_steps(pipeline: Pipeline) -> list[str]:
    """What a reader may want to do now."""
    name = pipeline.config.models[-1]
    model = pipeline.model(name).path / "model"
    code = f'from aqe import Expander; print(Expander.load("{model}").expand("a small stream of water"))'
    return [
        f"Expand a query: PYTHONPATH=platform .venv/bin/python -c '{code}'",
        "A result with tight intervals: make quickstart",
        "Another β, everything before alignment reused: --set align.dpo.beta=0.3",
        "Your own corpus and model: a config of ten lines, see README.md",
    ]


def _write_cards(pipeline: Pipeline, metrics: Mapping[str, Any]) -> None:
    """The model card with the results, beside each model's weights."""
    config = pipeline.config
    prompt = resolve(config.prompt)
    for name in config.models:
        artifact = pipeline.model(name)
        measured = metrics["systems"][name]
        write_model_card(
            artifact.path / "model",
            title=f"AQE {LABELS[name]}: {config.name}",
            base_model=pipeline.base.source,
            license=pipeline.base.license,
            example=None if prompt.chat else render(prompt, "(the query)"),
            facts={
                "Data": {
                    "corpus": f"{pipeline.index.stats['passages']} passages, artifact {pipeline.corpus.path.name}",
                    "training queries": pipeline.preferences.stats["queries"],
                    "preferences": f"{pipeline.preferences.stats['dpo_pairs']} pairs, {pipeline.preferences.path.name}",
                    "samples": pipeline.candidates().path.name,
                },
                "Index": {"name": pipeline.index.path.name, **config.index.model_dump(include={"k1", "b", "language"})},
                "Settings": {
                    "stages": STAGES[name],
                    **{
                        f"{stage}.{k}": v
                        for stage in STAGES[name]
                        for k, v in getattr(config.align, stage).model_dump().items()
                    },
                    "query weight": config.rank.query_weight,
                    **artifact.manifest["versions"],
                },
                f"Results ({metrics['num_queries']} {config.evaluate.split} queries)": {
                    m: f"{measured[m]['value']:.4f} [{measured[m]['low']:.4f}, {measured[m]['high']:.4f}]"
                    for m in ("top_1", "top_5", "top_20", "top_100", "mrr", "ndcg_10")
                },
            },
        )


def _point(link: Path, target: Path) -> None:
    """Let `link` name the newest report."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    part.replace(link)
