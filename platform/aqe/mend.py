"""What is broken in a run, or failed in it, is taken back with what was made from it, to be made again."""

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from aqe import checksums
from aqe.artifact import MANIFEST, NAME, UNFINISHED, load, look, reopen
from aqe.dead_letters import common, failed_units, reasons_of
from aqe.errors import ArtifactError, InputError
from aqe.observe.progress import Say
from aqe.storage import withdraw


def artifacts(root: Path) -> list[Path]:
    """Directories of a run's artifacts, unfinished ones too, by name."""
    return sorted(path for path in root.glob("*-*") if NAME.fullmatch(path.name) and not path.is_symlink())


def members(root: Path) -> list[Path]:
    """The same. InputError where there is none."""
    found = artifacts(root)
    if not found:
        raise InputError(f"{root} holds no artifact. Name the directory of a run, such as runs/demo.")
    return found


def verify_run(root: Path, say: Say) -> list[Path]:
    """Read each artifact anew, whatever is remembered of it, and say in a line how it is; returns the broken ones."""
    broken = []
    for path in members(root):
        verdict, whole = _verdict(path)
        say(f"{path.name}: {verdict}")
        if not whole:
            broken.append(path)
    return broken


def _verdict(path: Path) -> tuple[str, bool]:
    """What is to be said of an artifact, and whether it may be used."""
    if not (path / MANIFEST).exists():
        return "unfinished, the same command goes on with it", True
    try:
        artifact = look(path)
    except ArtifactError as error:
        return f"BROKEN: {str(error).partition('. Nothing of it is read')[0]}", False
    if artifact.files is None:
        return "made by an older version, without checksums: not verified", True
    if flaws := checksums.flaws(path, artifact.files, anew=True):
        return f"BROKEN: {'; '.join(flaws)}", False
    size = sum(stated["bytes"] for stated in artifact.files.values())
    return f"whole, {len(artifact.files):,} files of {size:,} bytes", True


def remove(root: Path, paths: Sequence[Path], say: Say) -> None:
    """Remove artifacts of a run and whatever was made from them. ArtifactError where a process works in the run."""
    with alone(root):
        _withdraw_made_from(root, paths, say)
        for path in paths:
            withdraw(path)
            say(f"{path.name}: removed")
        _unlink(root)


def retry_run(root: Path, say: Say) -> bool:
    """Take back the units of complete artifacts in which rows failed, and remove whatever was made from these.

    Returns whether there were some. All other units stay as they are, so that no other row of these stages is worked on
    again. ArtifactError where a process works in the run, or where what stays is not as it was made.
    """
    failed = [path for path in members(root) if failed_units(path)]
    for path in failed:
        if not (path / MANIFEST).exists():
            say(f"{path.name}: unfinished, the same command tries again by itself what failed")
    with alone(root):
        complete = [path for path in failed if (path / MANIFEST).exists()]
        # What was made from another one of them is made again as a whole.
        later = {one for path in complete for one in made_from(root, [path])}
        # Without its manifest nobody will know how the rest of a file must be.
        opened = [load(path) for path in complete if path not in later]
        _withdraw_made_from(root, [artifact.path for artifact in opened], say)
        for artifact in opened:
            path, units = artifact.path, failed_units(artifact.path)
            reasons = reasons_of(path / "dead_letters")
            kept = len(list((path / "data").glob("*.parquet"))) - len(units)
            rest = f"{kept} others stay" if kept >= 0 else "it keeps no units, so all are made again"
            say(f"{path.name}: {reasons.total()} rows failed in {len(units)} units ({common(reasons)}); {rest}")
            reopen(artifact)
            for unit in units:
                for part in ("data", "dead_letters"):
                    (path / part / f"{unit}.parquet").unlink(missing_ok=True)
        _unlink(root)
    return bool(opened)


def _withdraw_made_from(root: Path, paths: Sequence[Path], say: Say) -> None:
    # The last made first: whoever is interrupted finds what is left by what it was made from.
    for path in reversed(made_from(root, paths)):
        withdraw(path)
        say(f"{path.name}: removed, it was made from what is taken back")


def _unlink(root: Path) -> None:
    """`report` leads to the newest report, if there still is one."""
    for link in root.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()


def made_from(root: Path, paths: Collection[Path]) -> list[Path]:
    """Artifacts, unfinished ones too, that were made from these: each after one that it was made from."""
    there = {path: parents(path) for path in members(root) if path not in paths}
    found: list[Path] = []
    names = {path.name for path in paths}
    waiting = [path.name for path in paths]
    while waiting:
        parent = waiting.pop(0)
        either = {parent, parent.rpartition("-")[2]}
        for path, own in there.items():
            if path.name not in names and (own is None or own & either):
                names.add(path.name)
                found.append(path)
                waiting.append(path.name)
    return found


def parents(path: Path) -> set[str] | None:
    """Names or fingerprints of the artifacts that one was made from; None where it does not say."""
    try:
        if (path / MANIFEST).exists():
            artifact = look(path)
            return {*artifact.parents, *artifact.manifest["inputs"].values()}
        return set(json.loads((path / UNFINISHED).read_text())["parents"])
    except (ArtifactError, FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Nobody builds an artifact of the run meanwhile. ArtifactError when somebody does."""
    with contextlib.ExitStack() as held:
        for path in members(root):
            lock = root / f".{path.name}.lock"
            try:
                held.enter_context(FileLock(lock, timeout=0))
            except Timeout:
                raise ArtifactError(
                    f"{path} is being built by another process. Wait for it, or stop it, before anything is taken back."
                ) from None
        yield
