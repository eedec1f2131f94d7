"""The report of an evaluation: metrics.json, per_query.parquet, plots, and a page to look at (HTML and Markdown).

The HTML file stands alone: styles and plots are in it and it asks no other host for anything.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
from markupsafe import Markup

from aqe.artifact import write_parquet, write_text
from aqe.compose import compose
from aqe.evaluate.compare import System, baseline, best_control, main_model, ordered
from aqe.evaluate.measures import COLUMNS, per_query
from aqe.evaluate.outcome import of_pair, of_part
from aqe.report.console import PLACE_NAMES, p_text, points
from aqe.report.examples import pick_examples
from aqe.report.plots import make_plots, took
from aqe.report.style import colour
from aqe.report.verdict import verdict
from aqe.storage import put


@dataclass(frozen=True)
class ReportContext:
    """What the report shows beside the numbers of metrics.json. An empty field leaves its section out."""

    title: str
    queries: pa.Table
    """The evaluated queries (`records.QUERIES`), as given to `evaluate`."""
    systems: Sequence[System]
    """As given to `evaluate`."""
    subtitle: str = ""
    notice: str = ""
    """What a reader must know before the numbers."""
    query_weight: int = 1
    distinct_words: bool = False
    """Both as in the composed queries that were searched."""
    examples: int = 8
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the defaults; nested mappings are shown with dotted keys."""
    stages: Sequence[Mapping[str, Any]] = ()
    """Each with `stage` and `seconds`; optionally `counts` and `rates`, mappings of a name to a number."""
    curves: Sequence[tuple[Path, str]] = ()
    """PNG files made elsewhere (training curves) with their captions."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    preferences: Mapping[str, Any] = field(default_factory=dict)
    alignment: Mapping[str, Any] = field(default_factory=dict)
    """What training measured, by model."""
    dead_letters: Sequence[Mapping[str, Any]] = ()
    """Rows that could not be processed, each with `stage`, `rows` (their number), `reason` and `path`."""
    paths: Mapping[str, Any] = field(default_factory=dict)
    next_steps: Sequence[str] = ()
    docs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """docid -> title and text, to show the relevant passages of examples (docids in `queries.positives`)."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values of a nested mapping, in its order."""
    out: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out += flatten(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", number(value)))
    return out


def number(value: Any) -> str:
    """A number as people read it: thousands parted, three digits of a fraction. Other things as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int) or value.is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def placed(rank: float | None) -> str:
    """A rank, or that there is none."""
    return "not found" if rank is None else number(rank)


def percent(share: float | None) -> str:
    """A share in percent with one digit; a dash where nothing was counted."""
    return "–" if share is None else f"{share:.1%}"


def markdown(text: Any) -> str:
    """Text as one line of Markdown that means only itself, in a table's cell too."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", plain)


def about(system: Mapping[str, Any]) -> str:
    """What a row of the table is, in a line."""
    parts = [system["note"]] if system["note"] else []
    if system["num_seeds"] > 1:
        each = ", ".join(points(of_seed["mrr"]) for of_seed in system["of_seeds"])
        parts.append(f"mean of {system['num_seeds']} training seeds (MRR {each})")
    if system["lists_cut_at"]:
        cut = f"{system['lists_cut_at']:,}"
        parts.append(f"lists of {cut}; its differences in MRR are of lists that are cut there on both sides")
    for measures in system.get("beside", {}).values():
        value = points(measures["mrr"]["value"])
        parts.append(f"{measures['label']} has MRR {value} on the same {system['num_queries']:,} queries")
    return "; ".join(parts)


def headlines(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Tiles at the top: top-1 of BM25, of the best control and of the aligned model, and the differences in MRR."""
    systems, main = metrics["systems"], main_model(metrics)
    plain, best = baseline(metrics), best_control(metrics)
    tiles = []
    for name in dict.fromkeys((plain, best, main)):
        if name in systems:
            top = systems[name]["top_1"]
            span = f"top-1, {points(top['low'])} to {points(top['high'])}"
            kind = "main" if name == main else ""
            tiles.append({"label": systems[name]["label"], "value": points(top["value"]), "note": span, "kind": kind})
    for control in dict.fromkeys((plain, best)):
        if difference := metrics["differences"].get(f"{main}_vs_{control}", {}).get("mrr"):
            word = of_pair(metrics, f"{main}_vs_{control}")
            span = f"MRR, {points(difference['low'], True)} to {points(difference['high'], True)}: {word}"
            label = f"{systems[main]['label']} − {systems[control]['label']}"
            kind = {"better": "good", "worse": "bad"}.get(word, "")
            tiles.append({"label": label, "value": points(difference["value"], True), "note": span, "kind": kind})
    return tiles


def best_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """measure -> the highest value of the systems that cover all queries and are no oracle."""
    fair = [s for n, s in metrics["systems"].items() if n != "best_of_n" and s["num_queries"] == metrics["num_queries"]]
    return {m: max((s[m]["value"] for s in fair), default=-1.0) for m in COLUMNS}


def per_query_table(
    queries: pa.Table, systems: Sequence[System], query_weight: int = 1, distinct: bool = False
) -> pa.Table:
    """One row a system and query: expansion (null: none is made), composed query, exact rank, whether it is found, and
    every measure."""
    qids, texts = queries["qid"].to_pylist(), queries["text"].to_pylist()
    parts = []
    for system in ordered(systems):
        index = system.positions(queries.num_rows)
        expansions: Sequence[str | None] = system.expansions or [None] * len(index)
        columns: dict[str, Any] = {
            "system": pa.array([system.name] * len(index), pa.string()),
            "qid": pa.array([qids[i] for i in index], pa.string()),
            "query": pa.array([texts[i] for i in index], pa.string()),
            "expansion": pa.array(expansions, pa.string()),
            "composed": pa.array(
                [compose(texts[i], e or "", query_weight, distinct) for i, e in zip(index, expansions, strict=True)],
                pa.string(),
            ),
            "gold_rank": pa.array(system.ranks, pa.int32()),
            "found": pa.array(system.found, pa.bool_()),
            "search_ms": pa.array([None] * len(index) if system.search_ms is None else system.search_ms, pa.float32()),
            **{m: pa.array(v, pa.float64()) for m, v in per_query(system.ranks, system.found, system.ndcg).items()},
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "points": points,
        "percent": percent,
        "number": number,
        "placed": placed,
        "took": took,
        "md": markdown,
        "svg": Markup,
    }
    environment.globals |= {
        "of_pair": of_pair,
        "of_part": of_part,
        "p_text": p_text,
        "colour": colour,
        "about": about,
        "places": PLACE_NAMES,
    }
    return environment


def _curves(out: Path, curves: Sequence[tuple[Path, str]]) -> list[dict[str, str]]:
    """Copy the PNG files beside the other plots, and hold each as a data address for the page."""
    plots = []
    for at, (path, caption) in enumerate(curves, start=1):
        png = Path("plots") / f"curve_{at}_{re.sub(r'[^A-Za-z0-9_.-]', '_', path.name)}"
        content = path.read_bytes()
        put(out / png, partial(Path.write_bytes, data=content))
        data = base64.b64encode(content).decode()
        plots.append({"png": str(png), "caption": caption, "data": f"data:image/png;base64,{data}"})
    return plots


def write_report(out: Path, metrics: Mapping[str, Any], context: ReportContext) -> None:
    """Write metrics.json, per_query.parquet, plots/*.png, report.md and report.html into the directory `out`.

    `metrics` are those of `evaluate` for the queries and systems of `context`.
    """
    write_text(json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n", out / "metrics.json")
    table = per_query_table(context.queries, context.systems, context.query_weight, context.distinct_words)
    write_parquet(table, out / "per_query.parquet")
    systems = ordered(context.systems)
    shown = {
        "context": context,
        "verdict": verdict(metrics),
        "metrics": metrics,
        "main": main_model(metrics),
        "control": best_control(metrics),
        "columns": COLUMNS,
        "best": best_values(metrics),
        "tiles": headlines(metrics),
        "plots": make_plots(out, metrics, systems, context.stages),
        "curves": _curves(out, context.curves),
        "examples": pick_examples(context.queries, systems, metrics, context.examples, context.docs),
        "tables": [
            ("Settings that differ from the defaults", flatten(context.settings)),
            ("Candidates", flatten(context.sampling)),
            ("Preferences", flatten(context.preferences)),
            ("Alignment", flatten(context.alignment)),
            ("Where things lie", flatten(context.paths)),
        ],
    }
    environment = _environment()
    for name in ("report.html", "report.md"):
        write_text(environment.get_template(f"{name}.j2").render(shown), out / name)
