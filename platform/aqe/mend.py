"""What is broken in a run is found, and taken back with all that was made from it: the same command makes it again."""

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from aqe import checksums
from aqe.artifact import MANIFEST, NAME, UNFINISHED, look
from aqe.errors import ArtifactError
from aqe.observe.progress import Say
from aqe.storage import withdraw


def members(root: Path) -> list[Path]:
    """Directories of a run's artifacts, unfinished ones too, by name. ArtifactError where there is none."""
    found = sorted(path for path in root.glob("*-*") if NAME.fullmatch(path.name) and not path.is_symlink())
    if not found:
        raise ArtifactError(f"{root} holds no artifact. Name the directory of a run, such as runs/demo.")
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
        made = made_from(root, paths)
        # The last made first: whoever is interrupted finds what is left by what it was made from.
        for path in [*reversed(made), *paths]:
            withdraw(path)
            say(f"{path.name}: removed" + ("" if path in paths else ", it was made from what is taken back"))
        for link in root.iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()


def made_from(root: Path, paths: Collection[Path]) -> list[Path]:
    """Artifacts, unfinished ones too, that were made from these: each after one that it was made from."""
    there = {path: _parents(path) for path in members(root) if path not in paths}
    found: list[Path] = []
    names = {path.name for path in paths}
    waiting = [path.name for path in paths]
    while waiting:
        parent = waiting.pop(0)
        either = {parent, parent.rpartition("-")[2]}
        for path, parents in there.items():
            if path.name not in names and (parents is None or parents & either):
                names.add(path.name)
                found.append(path)
                waiting.append(path.name)
    return found


def _parents(path: Path) -> set[str] | None:
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
