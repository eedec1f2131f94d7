"""The plots of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from aqe.evaluate.compare import CONTROLS, System, baseline, best_model, main_model
from aqe.evaluate.expansions import words
from aqe.evaluate.significance import wins_losses_ties
from aqe.report.console import points
from aqe.report.style import BAD, EVEN, FAINT, GOOD, INK, Plot, colour, new, rows, save, styled

#: Ranks of the plain query that are told apart: found already, nearly, far down, not at all.
BUCKETS = (
    ("1", 1, 1),
    ("2–5", 2, 5),
    ("6–20", 6, 20),
    ("21–100", 21, 100),
    ("101–1000", 101, 1000),
    ("over 1000", 1001, np.iinfo(np.int32).max),
    ("not found", np.inf, np.inf),
)


def _value_labels(axes: Any, texts: Sequence[str]) -> None:
    """Values in a column at the right edge, where no mark can cover them."""
    for row, text in enumerate(texts):
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center_baseline", ha="left", fontsize=10.5)


def _row(axes: Any, row: int, measured: Mapping[str, float], shade: str, part: bool = False) -> None:
    axes.plot([measured["low"] * 100, measured["high"] * 100], [row, row], color=shade, lw=3, solid_capstyle="round")
    axes.plot(measured["value"] * 100, row, "D" if part else "o", ms=8 if part else 9, color=shade)


def forest(metrics: Mapping[str, Any], measure: str = "mrr") -> Figure:
    """A measure of every system with its interval."""
    systems = metrics["systems"]
    figure, axes = new(0.9 + 0.42 * len(systems))
    for row, (name, measured) in enumerate(systems.items()):
        _row(axes, row, measured[measure], colour(name), part=measured["num_queries"] != metrics["num_queries"])
    rows(axes, [measured["label"] for measured in systems.values()])
    _value_labels(axes, [points(measured[measure]["value"]) for measured in systems.values()])
    axes.set_xlabel("MRR, points")
    return figure


def differences(metrics: Mapping[str, Any], main: str, measure: str = "mrr") -> Figure | None:
    """The main model minus each control, with a line at zero."""
    pairs = [(c, metrics["differences"].get(f"{main}_vs_{c}")) for c in CONTROLS]
    there = [(c, difference[measure]) for c, difference in pairs if difference]
    if not there:
        return None
    figure, axes = new(0.95 + 0.45 * len(there))
    for row, (_, difference) in enumerate(there):
        _row(axes, row, difference, GOOD if difference["low"] > 0 else BAD if difference["high"] < 0 else FAINT)
    axes.axvline(0, color=INK, lw=1.2, zorder=1)
    rows(axes, [f"− {metrics['systems'][control]['label']}" for control, _ in there])
    _value_labels(axes, [points(difference["value"], sign=True) for _, difference in there])
    axes.set_xlabel("difference in MRR, points")
    return figure


def top_k_curve(systems: Sequence[System], full: int) -> Figure:
    """Share of queries whose passage is among the first k, for every k up to 100."""
    figure, axes = new(4.2)
    k = np.arange(1, 101)
    curves = {s.name: np.searchsorted(np.sort(s.ranks[s.found]), k, side="right") / len(s.ranks) * 100 for s in systems}
    for system in sorted(systems, key=lambda s: -curves[s.name][-1]):
        dashed = len(system.ranks) != full or system.expansions is None
        axes.plot(
            k, curves[system.name], color=colour(system.name), lw=2.4, ls="--" if dashed else "-", label=system.label
        )
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(1, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("k (log scale)")
    axes.set_ylabel("top-k accuracy, points")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=1.6)
    return figure


def by_bucket(before: System, after: System, total: int) -> Figure:
    """How many queries the model moves up and down, by the rank that the plain query gives."""
    shown = [s.spread(total)[1] for s in (before, after)]
    both = ~np.isnan(shown[0]) & ~np.isnan(shown[1])
    old, new_ranks = shown[0][both], shown[1][both]
    labels, shares = [], []
    for name, low, high in BUCKETS:
        inside = (old >= low) & (old <= high)
        if inside.any():
            labels.append(f"{name}  (n = {inside.sum()})")
            outcomes = wins_losses_ties(new_ranks[inside], old[inside])
            shares.append([100 * outcomes[key] / int(inside.sum()) for key in ("wins", "ties", "losses")])
    figure, axes = new(1.35 + 0.45 * len(labels))
    left = np.zeros(len(labels))
    for column, (label, shade, ink) in enumerate(
        (("better", GOOD, "white"), ("same", EVEN, "#30343a"), ("worse", BAD, "white"))
    ):
        share = np.array([s[column] for s in shares])
        axes.barh(range(len(labels)), share, left=left, color=shade, height=0.66, label=label)
        for row, value in enumerate(share):
            if value >= 6:
                axes.text(
                    left[row] + value / 2,
                    row,
                    f"{value:.0f}",
                    ha="center",
                    va="center_baseline",
                    color=ink,
                    fontsize=10,
                )
        left += share
    rows(axes, labels)
    axes.grid(visible=False)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the queries in the bucket")
    axes.set_ylabel("rank with BM25 alone")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handlelength=1, borderaxespad=0.2)
    return figure


def took(seconds: float) -> str:
    """`48 s`, `12.3 min`, `2.1 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def stage_cost(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Wall-clock time of each stage, in the order in which they ran."""
    figure, axes = new(0.9 + 0.36 * len(stages))
    seconds = [float(s["seconds"]) for s in stages]
    unit, name = (
        (3600.0, "hours") if max(seconds) >= 7200 else (60.0, "minutes") if max(seconds) >= 120 else (1.0, "seconds")
    )
    axes.barh(range(len(stages)), [s / unit for s in seconds], color=GOOD, height=0.62)
    rows(axes, [str(s["stage"]) for s in stages])
    _value_labels(axes, [took(s) for s in seconds])
    axes.set_xlabel(f"wall-clock {name}")
    return figure


def word_counts(systems: Sequence[System]) -> Figure | None:
    """Words of an expansion: median, the middle half, and from the 5th to the 95th percentile."""
    written = [s for s in systems if s.expansions]
    if not written:
        return None
    figure, axes = new(0.9 + 0.42 * len(written))
    for row, system in enumerate(written):
        counts = [len(words(e)) for e in system.expansions or ()]
        p5, p25, p50, p75, p95 = np.percentile(counts, [5, 25, 50, 75, 95])
        shade = colour(system.name)
        axes.plot([p5, p95], [row, row], color=shade, lw=2, solid_capstyle="round")
        axes.barh(row, p75 - p25, left=p25, height=0.5, color=shade, lw=0)
        axes.plot([p50, p50], [row - 0.34, row + 0.34], color=INK, lw=2)
    rows(axes, [s.label for s in written])
    _value_labels(axes, [f"{np.median([len(words(e)) for e in s.expansions or ()]):.0f}" for s in written])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlabel("words in an expansion")
    return figure


def make_plots(
    out: Path, metrics: Mapping[str, Any], systems: Sequence[System], stages: Sequence[Mapping[str, Any]]
) -> dict[str, Plot]:
    """All plots that there is data for, written below `out`/plots and keyed by name."""
    total, main, best = metrics["num_queries"], main_model(metrics), best_model(metrics)
    by_name = {s.name: s for s in systems}
    share = f"{metrics['confidence']:.0%}"
    with styled():
        drawn: list[tuple[Figure | None, str, str, str]] = [
            (
                forest(metrics),
                "mrr",
                "MRR of every system",
                f"Lines are {share} intervals; a diamond covers fewer queries.",
            ),
            (top_k_curve(systems, total), "top_k", "Top-k accuracy", "Dashed: no expansion, or fewer queries."),
            (
                word_counts(systems),
                "words",
                "Length of the expansions",
                "Median (line and number), middle half, 5th to 95th percentile.",
            ),
        ]
        if main:
            label = metrics["systems"][main]["label"]
            caption = f"Paired, with {share} intervals; grey where the interval holds zero."
            drawn.append((differences(metrics, main), "differences", f"{label} minus each control", caption))
        if best and (plain := baseline(metrics)):
            label = by_name[best].label
            title = f"Where {label} helps and where it hurts"
            caption = "Queries whose passage moves up, stays and moves down, by the rank that BM25 alone gives it."
            drawn.append((by_bucket(by_name[plain], by_name[best], total), "buckets", title, caption))
        if stages:
            drawn.append((stage_cost(stages), "stages", "Cost of the stages", "Wall-clock time."))
        return {name: save(figure, out, name, title, text) for figure, name, title, text in drawn if figure}
