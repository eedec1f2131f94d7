"""Checksums of an artifact's files: taken when it is made, compared before a node first uses it, and remembered there.

What has been read is known again by its size and time: a second look costs a `stat`. The memory is one file of the
user's on each node, in `aqe.storage.cache_directory()`.
"""

import contextlib
import hashlib
import os
import socket
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

from aqe.observe.progress import say
from aqe.storage import cache_directory, retry

#: Hashing gives Python's lock away, and storage over a network answers several readers sooner than one.
THREADS = 8
#: So many bytes take seconds: the log says what is waited for.
LONG = 2**30

T = TypeVar("T")


class Seen(NamedTuple):
    """A file as it was when it was read."""

    bytes: int
    mtime_ns: int
    sha256: str


def sha256(path: Path) -> str:
    """Hex digits of a file's SHA-256, read as a stream."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def take(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of these files of `directory`, by name. They count as verified on this node."""
    before = {name: _stat(directory / name) for name in sorted(names)}
    _tell("checksums of", directory, (found.st_size for found in before.values()))
    digests = _each(before, lambda name: sha256(directory / name))
    seen = {name: Seen(found.st_size, found.st_mtime_ns, digests[name]) for name, found in before.items()}
    _Memory(directory).keep(seen)
    return {name: {"bytes": one.bytes, "sha256": one.sha256} for name, one in seen.items()}


def flaws(
    directory: Path, files: Mapping[str, Mapping[str, Any]], *, anew: bool = False, patient: bool = False
) -> list[str]:
    """What is wrong with `files` of `directory`, each said of the file that it names; empty where all are as stated.

    A file that this node has read before, and whose size and time are as then, is not read again, unless `anew`. With
    `patient`, what is not there or cannot be read is tried again for a while: other nodes may see late what one has
    written; StorageError where that does not help.
    """
    memory = _Memory(directory)
    found: dict[str, os.stat_result] = {}
    wrong = {}
    for name, stated in files.items():
        try:
            found[name] = _stat(directory / name, patient)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            wrong[name] = "is missing" if missing else f"cannot be read ({error})"
            continue
        if (size := found[name].st_size) != stated["bytes"]:
            word = "shorter" if size < stated["bytes"] else "longer"
            wrong[name] = f"is {word} than it was made: {size:,} of {stated['bytes']:,} bytes"
    fit = [name for name in found if name not in wrong]

    def unread() -> list[str]:
        known = {} if anew else memory.recall()
        return [
            name
            for name in fit
            if known.get(name) != (found[name].st_size, found[name].st_mtime_ns, files[name]["sha256"])
        ]

    if unread():
        # One process of a node reads, the others wait and find that it has.
        with memory.lock():
            left = unread()
            _tell("verifying", directory, (found[name].st_size for name in left))
            digests = _each(left, lambda name: _digest(directory / name, patient))
            seen = {}
            for name, digest in digests.items():
                if isinstance(digest, OSError):
                    wrong[name] = f"cannot be read ({digest})"
                elif digest == files[name]["sha256"]:
                    seen[name] = Seen(found[name].st_size, found[name].st_mtime_ns, digest)
                else:
                    wrong[name] = "holds other bytes than it was made with"
            memory.keep(seen)
    return [f"{directory / name} {wrong[name]}" for name in files if name in wrong]


def _stat(path: Path, patient: bool = False) -> os.stat_result:
    return retry(path, path.stat, reads=True) if patient else path.stat()


def _digest(path: Path, patient: bool) -> str | OSError:
    """The SHA-256, or why there is none."""
    if patient:
        return retry(path, partial(sha256, path), reads=True)
    try:
        return sha256(path)
    except OSError as error:
        return error


def _each(names: Iterable[str], read: Callable[[str], T]) -> dict[str, T]:
    names = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _tell(doing: str, directory: Path, sizes: Iterable[int]) -> None:
    sizes = list(sizes)
    if sum(sizes) >= LONG:
        say(f"{doing} {directory.name}: {sum(sizes) / 2**30:.1f} GiB in {len(sizes):,} files")


class _Memory:
    """What this node has read of one artifact. Where it cannot be kept, files are read again: it costs time alone."""

    def __init__(self, directory: Path) -> None:
        self._artifact = str(directory.resolve())
        # A home may be shared by nodes; what they see of a file is not.
        self._file = cache_directory() / "verified" / f"{socket.gethostname()}.sqlite"

    def recall(self) -> dict[str, Seen]:
        """What is remembered, by the file's name."""
        try:
            with self._open() as rows:
                asked = rows.execute("SELECT name, bytes, mtime, sha256 FROM seen WHERE artifact = ?", [self._artifact])
                return {name: Seen(*one) for name, *one in asked}
        except (OSError, sqlite3.Error):
            return {}

    def keep(self, seen: Mapping[str, Seen]) -> None:
        """Remember these too, and forget artifacts that are gone."""
        try:
            with self._open() as rows:
                new = [(self._artifact, name, *one) for name, one in seen.items()]
                rows.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", new)
                known = [one for (one,) in rows.execute("SELECT DISTINCT artifact FROM seen")]
                gone = [[one] for one in known if not os.path.exists(one)]
                rows.executemany("DELETE FROM seen WHERE artifact = ?", gone)
        except (OSError, sqlite3.Error):
            return

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one process of this node that reads."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self._file.with_suffix(".lock")))
            yield

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self._file, timeout=30)) as rows, rows:
            rows.execute(
                "CREATE TABLE IF NOT EXISTS seen (artifact TEXT, name TEXT, bytes INTEGER, mtime INTEGER, sha256 TEXT, "
                "PRIMARY KEY (artifact, name)) WITHOUT ROWID"
            )
            yield rows
