"""The tables of README.md and docs/results.md, from docs/results: `python -m aqe.report.pages docs/results PAGE ...`.

A page says what stands where. Between `<!-- KIND NAME OF -->` and `<!-- end -->` comes, from NAME.json:

- `table` SET: the systems on a test set or pool,
- `differences` SET: what RSFT + DPO gains over each control there,
- `sets` SYSTEM: its gains over one control on each test set,
- `seeds` MEASURE: the trained systems with each of their seeds,
- `moved` all: whose ranks it moves up and down, and how far,
- `chosen` all: what was chosen on dev, among what, and what each system took,
- `gain` PAIR: two systems of benchmarks/weight_one.py, and the gain of one over the other as a share of it,
- `efficiency` all: what benchmarks/efficiency.py measured.

So no number is copied by hand.
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
from aqe.evaluate.significance import PLACES
from aqe.evaluate.systems import LABELS
from aqe.report.console import PLACE_NAMES, outcomes, points

MAIN = "rsft_dpo"
BLOCK = re.compile(r"(<!-- (\w+) (\w+) ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, results: Path) -> str:
    """`page` with every block as the results say. FileNotFoundError or KeyError for what they do not have."""

    def block(found: re.Match[str]) -> str:
        begin, kind, name, where, end = found.groups()
        of = json.loads((results / f"{name}.json").read_text())
        text = KINDS[kind](of, where)
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
    return "\n".join([*lines, *_relative(of, where, pairs)])


def _relative(of: Mapping[str, Any], where: str, controls: Sequence[str]) -> list[str]:
    """The gain as a share of the best control's top-1: of those that were asked every query of the set."""
    whole = _part(of, where)
    there = [c for c in controls if whole[c]["num_queries"] == of["queries"][where]]
    if not there:
        return []
    best = max(there, key=lambda name: whole[name]["top_1"]["value"])
    gain = of["relative_gains"][where][f"{MAIN}_vs_{best}"]["top_1"]
    if gain is None:
        return []
    value, low, high = (f"{gain[key] * 100:+.1f}" for key in ("value", "low", "high"))
    label = of["systems"][best]["label"]
    return ["", f"Relative gain in top-1 over the control that is best in it ({label}): {value} % [{low}, {high}]."]


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


def seeds(of: Mapping[str, Any], measure: str) -> str:
    """Markdown: a measure over all queries with each training seed, in points, and the mean of the seeds."""
    trained = {name: system for name, system in of["systems"].items() if "of_seeds" in system}
    most = max((system["num_seeds"] for system in trained.values()), default=0)
    lines = _head([COLUMNS[measure], *(f"seed {i}" for i in range(most)), "mean"])
    for system in trained.values():
        values = [run[measure] for run in system["of_seeds"]]
        cells = [points(value) for value in values] + [""] * (most - len(values))
        lines.append(_row(system["label"], [*cells, points(sum(values) / len(values))]))
    return "\n".join(lines)


def moved(of: Mapping[str, Any], where: str) -> str:
    """Markdown: queries that RSFT + DPO wins and loses against each control, where, and how far ranks move."""
    names = [PLACE_NAMES[place] for place in PLACES]
    lines = _head([f"{of['systems'][MAIN]['label']} against", "wins / losses / ties", *names, "halvings"])
    for control in CONTROLS:
        seen = of["comparisons"].get(f"{MAIN}_vs_{control}")
        if seen is not None:
            cells = [outcomes(seen), *(outcomes(seen["where"][place]) for place in PLACES)]
            lines.append(_row(of["systems"][control]["label"], [*cells, f"{seen['halvings']:+.2f}"]))
    return "\n".join(lines)


def chosen(of: Mapping[str, Any], where: str) -> str:
    """Markdown: what was chosen, among how many, the MRR that it was chosen by, and what each system took."""
    lines = _head(["", "chosen", "tried", "MRR of the chosen", "training rows", "CPU hours (one seed)"])
    for name, system in of["systems"].items():
        choice, took = of["chosen_on_dev"].get(name), of["made"][name]
        cells = ["", "", ""]
        if choice is not None:
            tried = choice["dev_mrr"]
            best = tried.get(choice["chosen"])
            cells = [str(choice["chosen"]), str(len(tried)), "" if best is None else points(best)]
        rows = " + ".join(f"{count:,}" for count in took["training_rows"])
        lines.append(_row(system["label"], [*cells, rows, f"{took['cpu_hours']:.2f}"]))
    return "\n".join(lines)


def gain(of: Mapping[str, Any], pair: str) -> str:
    """Markdown: the measures that decide of `a` and `b`, and a / b - 1, for the pair `a_vs_b`."""
    a, b = pair.split("_vs_")
    lines = _head(["", *(COLUMNS[m] for m in DECIDING)])
    for name in (b, a):
        lines.append(_row(LABELS[name], [_value(of["systems"][name][m], interval=True) for m in DECIDING]))
    shares = [of["relative_gains"][pair][m] for m in DECIDING]
    cells = [f"{g['value'] * 100:+.1f} % [{g['low'] * 100:+.1f}, {g['high'] * 100:+.1f}]" for g in shares]
    return "\n".join([*lines, _row("relative gain", cells)])


def efficiency(of: Mapping[str, Any], where: str) -> str:
    """Markdown: seconds a query and memory of both ways, and how much less the one takes, beside the paper's."""
    steps = list(of["arms"]["expand"]["seconds"])
    lines = _head(["", *(f"{step}, s" for step in steps), "in all, s", "peak memory, MiB", "of which models, MiB"])
    ways = {"expand": "one greedy expansion", "filter": f"{of['candidates']} candidates, then the filter"}
    for arm, label in ways.items():
        measured = of["arms"][arm]
        seconds = [f"{measured['seconds'][step]:.3f}" for step in steps]
        memory = [f"{measured[key]:,.0f}" for key in ("peak_mib", "models_mib")]
        lines.append(_row(label, [*seconds, f"{measured['seconds_per_query']:.3f}", *memory]))
    less = {
        name: [f"{(ratio - 1) * 100:+.1f} %" for ratio in ratios]
        for name, ratios in {
            "less": (of["time_ratio"], of["memory_ratio"], of["memory_ratio_of_models"]),
            "the paper's": (of["paper"]["time_ratio"], of["paper"]["memory_ratio"]),
        }.items()
    }
    empty = [""] * len(steps)
    return "\n".join(
        [*lines, *(_row(name, [*empty, *cells, *[""] * (3 - len(cells))]) for name, cells in less.items())]
    )


KINDS = {
    "table": table,
    "differences": differences,
    "sets": sets,
    "seeds": seeds,
    "moved": moved,
    "chosen": chosen,
    "gain": gain,
    "efficiency": efficiency,
}


def _share(of: Mapping[str, Any]) -> str:
    return f"{of['confidence'] * 100:.0f} %"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names[0], names[1:]), "|---|" + "---:|" * (len(names) - 1)]


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | " + " | ".join(cells) + " |"


def _value(measured: Mapping[str, float], interval: bool, sign: bool = False) -> str:
    value = points(measured["value"], sign)
    # The sign of a bound decides: one that is just below zero is -0.0.
    low, high = (f"{measured[key] * 100:{'+' if sign else ''}.1f}" for key in ("low", "high"))
    return f"{value} [{low}, {high}]" if interval else value


if __name__ == "__main__":
    results, *pages = map(Path, sys.argv[1:])
    for page in pages:
        write_text(fill(page.read_text(), results), page)
