"""One quiet style for all plots; a figure as PNG (white, for Markdown) and as SVG that follows the page's colours."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aqe.storage import put

#: Okabe and Ito's palette, which colour-blind readers can tell apart; grey for what is no expander of ours.
COLOURS = {
    "bm25": "#a3a9b1",
    "bm25_tuned": "#7f868f",
    "bm25_rm3": "#4d535b",
    "zero_shot": "#56b4e9",
    "zero_shot_best": "#2f7fc1",
    "zero_shot_cut": "#009e73",
    "union": "#b8a000",
    "filtered": "#7b4fa3",
    "rsft_random": "#b07d62",
    "rsft": "#e69f00",
    "dpo": "#cc79a7",
    "rsft_dpo": "#d55e00",
    "best_of_n": "#a3a9b1",
}
OTHER = "#8c6bb1"
GOOD, BAD, EVEN = "#2f7fc1", "#d55e00", "#c3c8cf"
#: Found again in the SVG and replaced by the page's colours: no other element may use them.
INK, FAINT, LINE = "#23272e", "#6b727c", "#dcdfe4"
PAGE = {INK: "currentColor", FAINT: "var(--muted)", LINE: "var(--line)"}
WIDTH = 8.0
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": LINE,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "ytick.major.pad": 8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Plot:
    """A rendered plot: `svg` to stand in a page, `png` a path below the report's directory."""

    name: str
    title: str
    caption: str
    svg: str
    png: str


def colour(name: str) -> str:
    """Of a system, the same in every plot."""
    return COLOURS.get(name, OTHER)


def styled() -> Any:
    """Context in which all figures are made."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE})


def new(height: float) -> tuple[Figure, Any]:
    """A figure 800 px wide with one set of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def rows(axes: Any, labels: Sequence[str]) -> None:
    """Label rows 0, 1, ... from the top, with a grid along x only."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def save(figure: Figure, out: Path, name: str, title: str, caption: str) -> Plot:
    """Write `out`/plots/`name`.png and return the plot with its SVG. StorageError when the storage refuses for long."""
    png = Path("plots") / f"{name}.png"
    options: dict[str, Any] = {"format": "png", "dpi": 160, "facecolor": "white", "metadata": {"Software": None}}
    put(out / png, lambda part: figure.savefig(part, **options))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(name, title, caption, inline_svg(buffer.getvalue(), name, f"{title}. {caption}"), str(png))


def inline_svg(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of an HTML page: unique ids, no address of another host, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    for used, page in PAGE.items():
        svg = svg.replace(used, page)
    # Sizes in pt would fix the width; the view box alone scales with the page.
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", svg[: svg.index(">") + 1])
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return head.replace("<svg", f'<svg role="img" aria-label="{label}"', 1) + svg[svg.index(">") + 1 :]
