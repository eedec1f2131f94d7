"""The table of an evaluation as plain text: for a terminal, and for a log without colours."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from aqe.evaluate.compare import CONTROLS, System, main_model, ordered
from aqe.evaluate.measures import COLUMNS
from aqe.report.examples import Example, pick_examples

#: How tables call the places of `aqe.evaluate.significance.PLACES`.
PLACE_NAMES = {"first_10": "first 10", "11_to_100": "11–100", "beyond": "beyond"}


def points(value: float, sign: bool = False) -> str:
    """A fraction as points (x 100) with one digit; never -0.0."""
    shown = round(value * 100, 1) + 0.0
    return f"{shown:+.1f}" if sign else f"{shown:.1f}"


def with_interval(measured: Mapping[str, float]) -> str:
    """`22.1 [20.8 23.4]`, in points."""
    value, low, high = (points(measured[key]) for key in ("value", "low", "high"))
    return f"{value} [{low} {high}]"


def p_text(p: float, resamples: int) -> str:
    """A p-value, or that it is the smallest the test can give."""
    return f"< {2 / (resamples + 1):.1g}" if p <= 1 / (resamples + 1) else f"{p:.3f}" if p >= 0.001 else f"{p:.4f}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        " ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def console_table(metrics: Mapping[str, Any]) -> str:
    """Systems, then the main model's paired differences to the controls: points with intervals, at most 120 wide."""
    total, main = metrics["num_queries"], main_model(metrics)
    head = [f"{total} queries", *COLUMNS.values()]
    systems = [
        [name + ("" if measured["num_queries"] == total else "*"), *(with_interval(measured[m]) for m in COLUMNS)]
        for name, measured in metrics["systems"].items()
    ]
    differences, notes = [], []
    for control in CONTROLS if main else ():
        pair = f"{main}_vs_{control}"
        if pair in metrics["differences"]:
            differences.append([f"- {control}", *(with_interval(metrics["differences"][pair][m]) for m in COLUMNS)])
            seen = metrics["comparisons"][pair]
            where = [f"{PLACE_NAMES[place]} {outcomes(counts)}" for place, counts in seen["where"].items()]
            notes += [
                f"{main} against {control}: {seen['wins']} wins, {seen['losses']} losses, {seen['ties']} ties "
                f"by gold rank; p of MRR {p_text(seen['p_value'], metrics['bootstrap'])}",
                f"  by the better of both ranks: {', '.join(where)}; {seen['halvings']:+.2f} halvings on average",
            ]
    lines = align([head, *systems, *([[f"{main} minus", *[""] * len(COLUMNS)]] if differences else []), *differences])
    rule = "-" * max(map(len, lines))
    at = len(systems) + 1
    body = [lines[0], rule, *lines[1:at], *([rule, *lines[at:]] if differences else [])]
    for name, measured in metrics["systems"].items():
        if measured["num_queries"] != total:
            beside = ", ".join(f"{n} {points(m['mrr']['value'])}" for n, m in measured.get("beside", {}).items())
            same = f" (MRR on the same: {beside})" if beside else ""
            said = f"* {name}: {measured['label']}, covers {measured['num_queries']} of the queries only{same}"
            notes += textwrap.wrap(said, 118, subsequent_indent="  ")
    if leaks := [(n, s["leakage_share"]) for n, s in metrics["systems"].items() if s["leakage_share"] is not None]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in leaks)
        notes += textwrap.wrap(
            f"An answer stands in the expansion (of bm25: in the query): {shares}", 118, subsequent_indent="  "
        )
    if differences:
        notes.append(
            "Halvings: mean fall of log2(gold rank); + is better. Not found counts as 1 + the number of passages."
        )
    confidence, resamples = metrics["confidence"], metrics["bootstrap"]
    foot = f"Points (x 100) with {confidence:.0%} intervals, paired bootstrap of {resamples} resamples."
    return "\n".join([*body, rule, *notes, foot])


def outcomes(counts: Mapping[str, int]) -> str:
    """Wins, losses and ties: `12/3/40`."""
    return f"{counts['wins']}/{counts['losses']}/{counts['ties']}"


def _shorten(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _show(example: Example, width: int) -> list[str]:
    lines = [f"  {_shorten(example.query, width - 2)}"]
    rows = [(r.system, "not found" if r.rank is None else str(r.rank), r.expansion) for r in example.rows]
    pad = max(len(name) for name, _, _ in rows)
    for name, rank, expansion in rows:
        start = f"    {name:<{pad}}  {rank:>9}  "
        shown = "" if expansion is None else _shorten(expansion, width - len(start)) or "(empty)"
        lines.append((start + shown).rstrip())
    return lines


def console_examples(
    queries: pa.Table, systems: Sequence[System], metrics: Mapping[str, Any], count: int = 3, width: int = 118
) -> str:
    """`count` best wins and worst losses of the best aligned model against BM25, and as many that nobody picked."""
    lines = []
    for title, examples in pick_examples(queries, ordered(systems), metrics, count).groups():
        if examples:
            lines += [f"{title} (gold rank, expansion)", *(line for e in examples for line in _show(e, width)), ""]
    return "\n".join(lines).rstrip()
