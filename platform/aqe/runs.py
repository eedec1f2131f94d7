"""The runs below a directory: how far each is, what it takes, how old it is, and whether it has a report."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aqe.artifact import MANIFEST, UNFINISHED
from aqe.errors import InputError
from aqe.mend import artifacts
from aqe.sizes import age, bytes_of, size

#: The link in a run's directory that leads to its newest report.
REPORT = "report"
PAGE = "report.html"


@dataclass(frozen=True)
class Summary:
    """One run as a person wants to see it in a list."""

    root: Path
    complete: int
    unfinished: int
    bytes: int
    changed: float
    """When its newest stage began or ended, in seconds since 1970."""
    report: Path | None
    """The page of its newest report."""

    def cells(self, now: float) -> list[str]:
        left = f", {self.unfinished} unfinished" if self.unfinished else ""
        stages = f"{self.complete} stage{'' if self.complete == 1 else 's'} complete{left}"
        where = "no report yet" if self.report is None else str(self.report)
        return [self.root.name, stages, size(self.bytes), age(now - self.changed), where]


def newest_report(root: Path) -> Path | None:
    """Directory of a run's newest complete report. Where the link got lost in a copy: of the last that was made."""
    link = root / REPORT
    if (link / MANIFEST).exists():
        return link.resolve()
    made = [path for path in root.glob("report-*") if (path / MANIFEST).exists()]
    return max(made, key=lambda path: (path / MANIFEST).stat().st_mtime, default=None)


def summary(root: Path) -> Summary | None:
    """What there is to say of a run; None where the directory holds no artifact."""
    members = artifacts(root)
    if not members:
        return None
    complete = [path for path in members if (path / MANIFEST).exists()]
    report = newest_report(root)
    page = None if report is None else (root / REPORT if (root / REPORT).exists() else report) / PAGE
    newest = max(map(_changed, members))
    return Summary(root, len(complete), len(members) - len(complete), bytes_of(root), newest, page)


def _changed(path: Path) -> float:
    """When an artifact was begun, or ended."""
    for file in (path / MANIFEST, path / UNFINISHED, path):
        if file.exists():
            return file.stat().st_mtime
    return 0.0


def summaries(directory: Path) -> list[Summary]:
    """The runs below a directory, or the one that it is itself; the one that changed last comes last.

    InputError where there is none.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory. Name the directory that holds your runs, such as runs.")
    here = [directory] if artifacts(directory) else [path for path in directory.iterdir() if path.is_dir()]
    found = [one for one in map(summary, here) if one is not None]
    if not found:
        raise InputError(f"{directory} holds no run. `aqe run --config demo` makes one in runs/demo.")
    return sorted(found, key=lambda one: (one.changed, one.root.name))


def lines(directory: Path, now: float | None = None) -> Iterator[str]:
    """The list as text, one line per run in aligned columns."""
    rows = [one.cells(time.time() if now is None else now) for one in summaries(directory)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
