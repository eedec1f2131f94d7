"""The tables of README.md and docs/results.md, from docs/results: `python -m aqe.report.pages docs/results PAGE ...`.

A page says what stands where: between `<!-- table NAME SET -->` and `<!-- end -->` the systems of NAME.json on a test
set or pool, between `<!-- differences NAME SET -->` and `<!-- end -->` what RSFT + DPO gains over each control there,
between `<!-- sets NAME SYSTEM -->` and `<!-- end -->` its gains over one control on each test set. So no number is
copied by hand.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aqe.artifact import write_text
from aqe.evaluate.compare import CONTROLS, DECIDING
from aqe.evaluate.measures import COLUMNS
from aqe.report.console import points

MAIN = "rsft_dpo"
BLOCK = re.compile(r"(<!-- (table|differences|sets) (\w+) ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, results: Path) -> str:
    """`page` with every block as the results say. FileNotFoundError or KeyError for what they do not have."""

    def block(found: re.Match[str]) -> str:
        begin, kind, name, where, end = found.groups()
        of = json.loads((results / f"{name}.json").read_text())
        text = {"table": table, "differences": differences, "sets": sets}[kind](of, where)
        return f"{begin}{text}\n{end}"

    return BLOCK.sub(block, page)


def _part(of: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    systems: Mapping[str, Any] = (of["datasets"] | of["pools"])[where]
    return systems


def table(of: Mapping[str, Any], where: str) -> str:
    """Markdown: every system on a test set or pool, in points."""
    total = of["queries"][where]
    lines = [
        f"{total:,} queries; points, MRR with {_share(of)} intervals.",
        "",
        *_head(["", *COLUMNS.values(), "end by themselves", "empty", "answer given away"]),
    ]
    for name, measured in _part(of, where).items():
        system = of["systems"][name]
        label = system["label"]
        if system["num_seeds"] > 1:
            label += f" ({system['num_seeds']} seeds)"
        if measured["num_queries"] != total:
            label += f", on {measured['num_queries']:,} queries"
        cells = [_value(measured[m], interval=m == "mrr") for m in COLUMNS]
        shares = [system.get(key) for key in ("finished_share", "empty_share", "leakage_share")]
        cells += ["" if share is None else f"{share * 100:.0f} %" for share in shares]
        lines.append(_row(f"**{label}**" if name == MAIN else label, cells))
    return "\n".join(lines)


def differences(of: Mapping[str, Any], where: str) -> str:
    """Markdown: RSFT + DPO minus each control on a test set or pool, in the measures that decide."""
    pairs = [c for c in CONTROLS if f"{MAIN}_vs_{c}" in of["differences"][where]]
    lines = _head([f"{of['systems'][MAIN]['label']} minus", *(COLUMNS[m] for m in DECIDING), "both above 0"])
    for control in pairs:
        apart = of["differences"][where][f"{MAIN}_vs_{control}"]
        above = all(apart[m]["low"] > 0 for m in DECIDING)
        cells = [_value(apart[m], interval=True, sign=True) for m in DECIDING]
        lines.append(_row(of["systems"][control]["label"], [*cells, "yes" if above else "no"]))
    return "\n".join(lines)


def sets(of: Mapping[str, Any], control: str) -> str:
    """Markdown: RSFT + DPO minus one control on each test set and pool, with p-values corrected over the sets."""
    lines = _head(
        [f"minus {of['systems'][control]['label']}", "queries", *(COLUMNS[m] for m in DECIDING), "p of MRR (Holm)"]
    )
    pair = f"{MAIN}_vs_{control}"
    for where in (*of["datasets"], *of["pools"]):
        apart = of["differences"][where].get(pair)
        if apart is None:
            continue
        p = of["holm"].get(where, {}).get("mrr", {}).get(pair)
        cells = [f"{of['queries'][where]:,}", *(_value(apart[m], interval=True, sign=True) for m in DECIDING)]
        lines.append(_row(f"`{where}`", [*cells, "" if p is None else f"{p:.3f}"]))
    return "\n".join(lines)


def _share(of: Mapping[str, Any]) -> str:
    return f"{of['confidence'] * 100:.0f} %"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names[0], names[1:]), "|---|" + "---:|" * (len(names) - 1)]


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | " + " | ".join(cells) + " |"


def _value(measured: Mapping[str, float], interval: bool, sign: bool = False) -> str:
    value, low, high = (points(measured[key], sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if interval else value


if __name__ == "__main__":
    results, *pages = map(Path, sys.argv[1:])
    for page in pages:
        write_text(fill(page.read_text(), results), page)
