"""What the newest report of a run was made with: all that the same command asks for when it runs again.

Manifests name the artifacts that an artifact reads, and not those by which a setting was chosen. So the command itself
notes all that it asked for, once its report is there.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aqe.artifact import write_text

CHAIN = "chain.json"


@dataclass(frozen=True)
class Chain:
    """The artifacts, by the names of their directories."""

    report: str
    artifacts: frozenset[str]
    written: float
    """When the command ended, in seconds since 1970."""


def write(root: Path, report: str, used: Iterable[str]) -> None:
    """Note what the newest report of the run at `root` was made with, in place of what was noted before."""
    noted = {"report": report, "artifacts": sorted({report, *used}), "written": time.time()}
    write_text(json.dumps(noted, indent=1) + "\n", root / CHAIN)


def read(root: Path, report: str) -> Chain | None:
    """What was noted of this report; None where nothing was, or of another one."""
    try:
        noted = json.loads((root / CHAIN).read_text())
        chain = Chain(str(noted["report"]), frozenset(map(str, noted["artifacts"])), float(noted["written"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return chain if chain.report == report else None
