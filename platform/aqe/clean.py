"""What can go from a run's directory, and what stays because the same command would need it again.

Stays: what the newest report was made with (`aqe.chain`), what is newer than that, whatever one of these was made from,
and older reports. Can go: all other artifacts, what a killed process left half-written, and the checkpoints of a
training that has ended. Where no report says what the run needs, every artifact stays.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aqe import chain
from aqe.align.layout import CHECKPOINTS, trained
from aqe.artifact import MANIFEST, look
from aqe.chain import Chain
from aqe.errors import ArtifactError
from aqe.mend import alone, members, parents
from aqe.observe.progress import Say
from aqe.runs import newest_report
from aqe.sizes import bytes_of, size
from aqe.storage import remove, withdraw

#: What a killed process leaves of what it wrote or removed (`aqe.storage`).
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.(part|gone)")


@dataclass(frozen=True)
class Part:
    """Something below a run's directory, and why it stays or can go."""

    path: Path
    bytes: int
    why: str


@dataclass(frozen=True)
class Plan:
    """All of a run's artifacts, and what lies beside and in them that nobody needs."""

    go: Sequence[Part]
    keep: Sequence[Part]

    def lines(self, root: Path) -> Iterator[str]:
        """What a person reads before anything is removed."""
        if self.go:
            yield f"Can go, {size(sum(part.bytes for part in self.go))}:"
            for part in self.go:
                yield f"  {size(part.bytes):>10}  {part.path.relative_to(root)}: {part.why}"
        else:
            yield "Nothing can go."
        yield f"Stays, {size(sum(part.bytes for part in self.keep))}:"
        for why in dict.fromkeys(part.why for part in self.keep):
            same = [part for part in self.keep if part.why == why]
            what = same[0].path.name if len(same) == 1 else f"{len(same)} artifacts"
            yield f"  {size(sum(part.bytes for part in same)):>10}  {what}: {why}"


def plan(root: Path) -> Plan:
    """What can go and what stays. InputError where the directory holds no artifact."""
    report = newest_report(root)
    noted = None if report is None else chain.read(root, report.name)
    there = members(root)
    if noted is not None:
        reasons = _reasons(root, there, noted)
    elif report is None:
        reasons = dict.fromkeys(there, "this run has no report yet, and the same command goes on with what is there")
    else:
        why = "its report does not say what it uses. Run its command once more: it makes nothing again, and notes that"
        reasons = dict.fromkeys(there, why)
    go = [Part(path, bytes_of(path), _unused(path)) for path in there if path not in reasons]
    go += [Part(path, bytes_of(path), "half-written, its writer is gone") for path in _leftovers(root)]
    keep = []
    for path, why in reasons.items():
        inside = list(_inside(path))
        go += inside
        keep.append(Part(path, bytes_of(path) - sum(part.bytes for part in inside), why))
    return Plan(go, keep)


def clean(root: Path, say: Say) -> Plan:
    """Remove what can go, as it is found once nobody else works in the run. ArtifactError where somebody does."""
    with alone(root):
        found = plan(root)
        # What was made last goes first: whoever is interrupted leaves nothing without what it was made from.
        for part in sorted(found.go, key=lambda part: _ended(part.path), reverse=True):
            if part.path.is_dir() and not LEFTOVER.fullmatch(part.path.name):
                withdraw(part.path)
            else:
                remove(part.path)
            say(f"{part.path.relative_to(root)}: removed, {size(part.bytes)}")
    return found


def _unused(path: Path) -> str:
    if (path / MANIFEST).exists():
        return "the newest report does not use it"
    return "half-made, older than the newest report, which does not use it"


def _reasons(root: Path, there: Sequence[Path], noted: Chain) -> dict[Path, str]:
    """Why an artifact stays, of each that does."""
    reasons: dict[Path, str] = {}
    waiting: list[Path] = []
    for path in there:
        if path.name in noted.artifacts:
            reasons[path] = f"{noted.report}, the newest report, uses it: the same command asks for it again"
        elif _ended(path) > noted.written:
            reasons[path] = "newer than the newest report: a run that has not ended may need it"
            waiting.append(path)
        elif other := _linked_from(root, path):
            reasons[path] = f"the run {other} reads it"
            waiting.append(path)
        elif path.name.startswith("report-") and (path / MANIFEST).exists():
            reasons[path] = "an older report, and so a result. What it was made with may go"
    while waiting:
        child = waiting.pop()
        made_from = parents(child)
        if made_from is None:
            # It may be made from any of them.
            return {path: reasons.get(path, f"{child.name} does not say what it was made from") for path in there}
        for path in there:
            if path not in reasons and {path.name, path.name.rpartition("-")[2]} & made_from:
                reasons[path] = f"{child.name} was made from it"
                waiting.append(path)
    return reasons


def _ended(path: Path) -> float:
    """When an artifact was completed; of unfinished work, and of other things, when something in it last changed."""
    times = [path.lstat().st_mtime]
    manifest = path / MANIFEST
    if manifest.exists():
        times = [manifest.stat().st_mtime]
        try:
            created = str(look(path).manifest.get("created"))
            times.append(datetime.fromisoformat(created).timestamp())
        except (ArtifactError, ValueError):
            # Of a broken or a foreign manifest: the file's own time is all there is.
            pass
    elif path.is_dir():
        for directory, _, names in os.walk(path):
            times += [os.lstat(os.path.join(directory, name)).st_mtime for name in (".", *names)]
    return max(times)


def _linked_from(root: Path, path: Path) -> str | None:
    """Another run beside this one whose index is a link into an artifact."""
    for link in root.resolve().parent.glob("*/*-*/lucene"):
        if link.is_symlink() and link.resolve().is_relative_to(path.resolve()):
            return link.parents[1].name
    return None


def _leftovers(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if LEFTOVER.fullmatch(path.name))


def _inside(artifact: Path) -> Iterator[Part]:
    """What an artifact that stays does not need: half-written files, and checkpoints of a training that has ended.

    Where work goes on, half-written files stay: a worker that lost its driver may be writing one.
    """
    checkpoints = artifact / CHECKPOINTS
    complete = (artifact / MANIFEST).exists()
    stated = _stated(artifact) if complete else []
    if checkpoints.is_dir() and trained(artifact) and not any(name.startswith(f"{CHECKPOINTS}/") for name in stated):
        yield Part(checkpoints, bytes_of(checkpoints), "checkpoints of a training that has ended")
    if complete:
        for directory, below, names in os.walk(artifact):
            below[:] = [name for name in below if Path(directory, name) != checkpoints]
            for name in [one for one in (*below, *names) if LEFTOVER.fullmatch(one)]:
                path = Path(directory, name)
                yield Part(path, bytes_of(path), "half-written, its writer is gone")
            below[:] = [name for name in below if not LEFTOVER.fullmatch(name)]


def _stated(artifact: Path) -> list[str]:
    """Files that a manifest names; of a broken one all, so to say: nothing in it is touched."""
    try:
        return list(json.loads((artifact / MANIFEST).read_text()).get("files", ()))
    except (ValueError, AttributeError):
        return [f"{CHECKPOINTS}/"]
