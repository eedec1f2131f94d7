"""Training curves: Trainer's log as a table, and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe.align.arguments import Kind
from aqe.storage import put

_COMMON = ("step", "epoch", "loss", "learning_rate", "grad_norm", "seconds", "tokens_per_second", "kl_per_token")
_DPO = ("reward_margin", "reward_accuracy", "logp_chosen", "logp_rejected", "logratio_chosen", "logratio_rejected")

#: panel title -> (axis label, columns)
_PANELS = {
    "Loss": ("nats", ("loss",)),
    "Learning rate": ("rate", ("learning_rate",)),
    "Gradient norm": ("norm before clipping", ("grad_norm",)),
    "Reward margin": ("β · nats", ("reward_margin",)),
    "Pairs with the right order": ("share", ("reward_accuracy",)),
    "Log-probability of a text": ("nats", ("logp_chosen", "logp_rejected")),
    "Change against the reference": ("nats a text", ("logratio_chosen", "logratio_rejected")),
    "KL to the reference": ("nats a token", ("kl_per_token",)),
    "Throughput": ("tokens / s", ("tokens_per_second",)),
}

_PANELS_A_ROW = 4


def curves_table(kind: Kind, log: Sequence[Mapping[str, Any]], beta: float) -> pa.Table:
    """One row a logged step, means over the steps since the row before.

    loss in nats (rsft: a token; dpo: a pair), `seconds` since the row before, tokens of prompts and completions.
    dpo: `reward_*` as TRL defines them (beta times the log-ratio to the reference), `logp_*` of a whole text,
    `logratio_*` = mean log(policy / reference) of a whole text. The last two are means over given texts: they are no
    estimate of the KL divergence. `kl_per_token` is that, exact, in nats; null at steps where it was not measured.
    """
    rows = []
    for entry in log:
        row = {name: entry.get(name) for name in ("step", "epoch", "loss", "learning_rate", "grad_norm", "seconds")}
        row["tokens_per_second"] = entry["tokens"] / entry["seconds"]
        row["kl_per_token"] = entry.get("kl_per_token")
        if kind == "dpo":
            row |= {
                "reward_margin": entry["rewards/margins"],
                "reward_accuracy": entry["rewards/accuracies"],
                "logp_chosen": entry["logps/chosen"],
                "logp_rejected": entry["logps/rejected"],
                "logratio_chosen": entry["rewards/chosen"] / beta,
                "logratio_rejected": entry["rewards/rejected"] / beta,
            }
        rows.append(row)
    names = _COMMON + (_DPO if kind == "dpo" else ())
    return pa.Table.from_pylist(
        rows, schema=pa.schema([(n, pa.int64() if n == "step" else pa.float64()) for n in names])
    )


def plot_curves(path: Path, tables: Mapping[str, pa.Table]) -> None:
    """Write a PNG of small multiples, four a row; each name in `tables` (a stage's title) begins a new row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        name: [title for title, (_, series) in _PANELS.items() if all(_has_values(table, one) for one in series)]
        for name, table in tables.items()
    }
    rows = [
        (name, titles[i : i + _PANELS_A_ROW])
        for name, titles in panels.items()
        for i in range(0, len(titles), _PANELS_A_ROW)
    ]
    figure = Figure(figsize=(3.4 * _PANELS_A_ROW, 2.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), _PANELS_A_ROW, squeeze=False)
    for line, (name, titles) in zip(axes, rows, strict=True):
        for axis in line[len(titles) :]:
            axis.set_axis_off()
        for axis, title in zip(line, titles, strict=False):
            _draw(axis, name, title, tables[name])
    put(path, lambda part: figure.savefig(part, format="png", dpi=110))


def _has_values(table: pa.Table, series: str) -> bool:
    """Some are not measured everywhere: DeepSpeed tells no gradient norm without ZeRO."""
    return series in table.column_names and table[series].null_count < table.num_rows


def _draw(axis: Any, name: str, title: str, table: pa.Table) -> None:
    label, names = _PANELS[title]
    for series in names:
        there = table.filter(table[series].is_valid())
        axis.plot(there["step"].to_numpy(), there[series].to_numpy(), label=series, linewidth=1.4)
    axis.set_title(f"{name}: {title}", fontsize=10)
    axis.set_xlabel("optimiser step", fontsize=8)
    axis.set_ylabel(label, fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(names) > 1:
        axis.legend(fontsize=8)
