"""Files and directories that are there whole or not at all, on storage that may refuse a write for a while."""

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from aqe.errors import StorageError
from aqe.observe.progress import say

#: Seconds before each further try: a quota is being raised, a mount hangs, a server wants fewer requests.
PAUSES: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)

T = TypeVar("T")


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or a directory at the path that it is given, then put it at `path` in one step.

    A directory that is there is replaced. What the storage refuses is tried again, see `retry`; nothing is left at
    `path` that was not there before.
    """
    # Unique among all nodes that write here: process ids are not.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")

    def once() -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(part)
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(part, path)
        except BaseException:
            remove(part)
            raise

    retry(path, once)


def retry(path: Path, action: Callable[[], T]) -> T:
    """`action()`, which writes `path`; after an OSError again, with each of PAUSES before it.

    Raises StorageError when the storage still refuses.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        # safetensors (Rust) has an error of its own.
        except (OSError, SafetensorError) as error:
            if pause is None:
                raise StorageError(
                    f"{path} cannot be written: {error}. The storage refused it {len(PAUSES) + 1} times in "
                    f"{sum(PAUSES):.0f} s. Make room, or mend it, and run again: what is finished is kept."
                ) from error
            say(f"the storage refuses {path} ({error}); tried again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
