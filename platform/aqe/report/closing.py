"""What the end of a run prints, and `aqe report` prints again."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from aqe.artifact import Artifact, load
from aqe.errors import InputError
from aqe.report.verdict import verdict
from aqe.runs import PAGE, REPORT, newest_report

#: The table and some examples, as text.
SUMMARY = "summary.txt"
METRICS = "metrics.json"
#: What a reader may want to do now, one step per line.
NEXT_STEPS = "next_steps.txt"


def find(root: Path) -> Artifact:
    """A run's newest report. InputError where it has none, ArtifactError where it is not as it was made."""
    if not root.is_dir():
        raise InputError(f"{root} does not exist. `aqe runs` lists the runs that there are.")
    newest = newest_report(root)
    if newest is None:
        raise InputError(f"{root} has no report yet. It is the last thing that a run makes: the same command goes on.")
    return load(newest)


def closing(root: Path, report: Artifact, steps: Sequence[str] = ()) -> str:
    """The table and examples of a report, its verdict, where its pages are, and what to do next.

    That is `steps`, or what the report noted.
    """
    file = report.path / NEXT_STEPS
    steps = steps or (file.read_text().splitlines() if file.exists() else [])
    link = root / REPORT
    where = link if link.exists() and link.resolve() == report.path.resolve() else report.path
    metrics = json.loads((report.path / METRICS).read_text())
    parts = [
        (report.path / SUMMARY).read_text().strip("\n"),
        textwrap.fill(verdict(metrics).text, 118, break_on_hyphens=False, break_long_words=False),
        f"Report: {where / PAGE}\n        {where / 'report.md'}",
    ]
    if steps:
        parts.append("\n".join(["Next:", *(f"  * {step}" for step in steps)]))
    return "\n" + "\n\n".join(parts) + "\n"
