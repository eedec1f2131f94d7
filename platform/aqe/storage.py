"""Files and directories that are there whole or not at all, on storage that may refuse a write for a while."""

import os
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from safetensors import SafetensorError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_chain, wait_fixed

from aqe.errors import ArtifactError, StorageError
from aqe.observe.progress import say

#: Seconds before each further try: a quota is being raised, a mount hangs, a server wants fewer requests.
PAUSES: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)

T = TypeVar("T")


def cache_directory() -> Path:
    """`$AQE_CACHE`, else ~/.cache/aqe."""
    return Path(os.environ.get("AQE_CACHE") or Path.home() / ".cache" / "aqe")


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or a directory at the path that it is given, then put it at `path` in one step.

    A directory that is there is replaced. Whoever may read the directory that it lies in may read it, whatever the
    library that wrote it thinks. What the storage refuses is tried again, see `retry`; nothing is left at
    `path` that was not there before.
    """
    # Unique among all nodes that write here: process ids are not.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")

    def once() -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(part)
            _open_to_readers(part)
            # A link is replaced as it is.
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            os.replace(part, path)
        except BaseException:
            remove(part)
            raise

    retry(path, once)


def _open_to_readers(part: Path) -> None:
    """Let read who may read the directory around `part`: safetensors, for one, writes for its owner alone."""
    readers = stat.S_IMODE(part.parent.stat().st_mode) & 0o555
    for path in (part, *part.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | (readers if path.is_dir() else readers & 0o444)
        if wanted != mode:
            path.chmod(wanted)


def retry(path: Path, action: Callable[[], T], reads: bool = False) -> T:
    """`action()`, which writes `path`, or reads it; after an error of the storage again, with each of PAUSES before it.

    Where it reads, a file that is not there counts as one: other nodes may see late what a node has written. Raises
    StorageError when the storage still refuses.
    """
    # safetensors (Rust) has an error of its own.
    errors = (OSError, pa.ArrowException, ArtifactError) if reads else (OSError, SafetensorError)
    cannot = "read" if reads else "written"
    remedy = "Repair it, or wait until all nodes see the same files," if reads else "Make room, or repair it,"

    def told(state: RetryCallState) -> None:
        say(f"the storage refuses {path} ({_error(state)}); tried again in {state.upcoming_sleep:g} s")

    def given_up(state: RetryCallState) -> T:
        raise StorageError(
            f"{path} cannot be {cannot}: {_error(state)}. The storage refused it {len(PAUSES) + 1} times in "
            f"{sum(PAUSES):.0f} s. {remedy} and run again: what is finished is kept."
        ) from _error(state)

    tries = Retrying(
        retry=retry_if_exception_type(errors),
        stop=stop_after_attempt(len(PAUSES) + 1),
        # tenacity asks for a pause after the last try too, and waits for none.
        wait=wait_chain(*map(wait_fixed, (*PAUSES, 0.0))),
        before_sleep=told,
        retry_error_callback=given_up,
    )
    return tries(action)


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def withdraw(path: Path) -> None:
    """Remove a directory in one step: whatever happens, no half of it is left under its name."""
    gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}.gone")
    os.replace(path, gone)
    remove(gone)
