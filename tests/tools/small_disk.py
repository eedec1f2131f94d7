"""A real file system that can be full: a tmpfs of a few megabytes, mounted for a test."""

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted directory of `megabytes`; what a test does not use can be taken away and given back."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        self._ballast = path / ".ballast"
        self._bytes = megabytes * 2**20

    def fill(self) -> None:
        """From now on the kernel refuses every write: no space left on device."""
        with self._ballast.open("ab", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    assert ballast.tell() <= self._bytes
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self) -> None:
        """There is room again."""
        self._ballast.unlink()


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount one at `path`. Skips the test where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield SmallDisk(path, megabytes)
    finally:
        # Lazily: a process that still looks into it must not keep it mounted.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
