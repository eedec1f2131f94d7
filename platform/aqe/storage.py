"""Files and directories that are there whole or not at all, on storage that may refuse a write for a while."""

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from aqe.errors import StorageError
from aqe.observe.progress import say

#: Seconds before each further try: a quota that is being raised, a mount that hangs, a server that wants fewer requests.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or a directory at the path that it is given, then put it at `path` in one step.

    A directory that is there is replaced. What the storage refuses (OSError) is tried again after each of PAUSES.
    Raises StorageError when it still refuses; nothing is left at `path` that was not there before.
    """
    # Unique among all nodes that write here: process ids are not.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    for pause in (*PAUSES, None):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(part)
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(part, path)
            return
        # safetensors (Rust) has an error of its own.
        except (OSError, SafetensorError) as error:
            _remove(part)
            if pause is None:
                raise StorageError(
                    f"{path} cannot be written: {error}. The storage refused it {len(PAUSES) + 1} times in "
                    f"{sum(PAUSES):.0f} s. Make room, or mend it, and run again: what is finished is kept."
                ) from error
            say(f"the storage refuses {path} ({error}); tried again in {pause:g} s")
            time.sleep(pause)
        except BaseException:
            _remove(part)
            raise


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
