"""The short table of a README, from a report's metrics.json: `python -m aqe.report.summary README.md metrics.json`.

Written between the lines `<!-- results -->` and `<!-- end of results -->`, so that no number is copied by hand.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aqe.artifact import write_text
from aqe.evaluate.compare import CONTROLS, best_control, main_model
from aqe.evaluate.measures import COLUMNS
from aqe.report.console import points

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def summary(metrics: Mapping[str, Any]) -> str:
    """Markdown: all systems, and the main model's paired differences to the controls."""
    main = main_model(metrics)
    systems, total = metrics["systems"], metrics["num_queries"]
    shares = {"empty_share": "empty"}
    if any(system["leakage_share"] is not None for system in systems.values()):
        shares["leakage_share"] = "answer given away"
    lines = [
        f"{total:,} queries; points with {metrics['confidence'] * 100:.0f} % intervals (paired bootstrap).",
        "",
        "| |" + "".join(f" {name} |" for name in [*COLUMNS.values(), *shares.values()]),
        "|---|" + "---:|" * (len(COLUMNS) + len(shares)),
    ]
    for name, system in systems.items():
        label = (
            system["label"]
            if system["num_queries"] == total
            else f"{system['label']}, {system['num_queries']:,} queries"
        )
        values = [_value(system[m], interval=m == "mrr") for m in COLUMNS]
        values += ["" if system[share] is None else f"{system[share]:.1%}" for share in shares]
        lines.append(f"| {f'**{label}**' if name == main else label} | " + " | ".join(values) + " |")
    pairs = [c for c in CONTROLS if f"{main}_vs_{c}" in metrics["differences"]]
    if main is None or not pairs:
        return "\n".join(lines)
    measures = {m: COLUMNS[m] for m in ("top_1", "top_20", "mrr")}
    lines += [
        "",
        f"| {systems[main]['label']} against |"
        + "".join(f" {name} |" for name in measures.values())
        + " wins / losses / ties |",
        "|---|" + "---:|" * (len(measures) + 1),
    ]
    for control in pairs:
        difference, seen = (
            metrics["differences"][f"{main}_vs_{control}"],
            metrics["comparisons"][f"{main}_vs_{control}"],
        )
        values = [_value(difference[m], interval=True, sign=True) for m in measures]
        counts = f"{seen['wins']} / {seen['losses']} / {seen['ties']}"
        lines.append(f"| {systems[control]['label']} | " + " | ".join([*values, counts]) + " |")
    best = best_control(metrics, "top_1")
    if best and (gain := metrics["relative_gains"].get(f"{main}_vs_{best}", {}).get("top_1")):
        low, high = (f"{gain[key] * 100:+.1f}" for key in ("low", "high"))
        best = f"the best control ({systems[best]['label']})"
        lines += ["", f"Relative gain in top-1 over {best}: {gain['value'] * 100:+.1f} % [{low}, {high}]."]
    return "\n".join(lines)


def _value(measured: Mapping[str, float], interval: bool, sign: bool = False) -> str:
    value, low, high = (points(measured[key], sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if interval else value


def insert(page: str, text: str) -> str:
    """`page` with `text` between its two marks. ValueError where it has not both."""
    before, rest = page.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


if __name__ == "__main__":
    page, source = map(Path, sys.argv[1:])
    write_text(insert(page.read_text(), summary(json.loads(source.read_text()))), page)
