"""The one place that knows numba: how loops are compiled, and where the machine code is kept.

Compiling takes some twenty seconds. Numba's own choice is a place beside the code, found by its path and age: each Ray
job has its own copy of the code, and would compile again. And numba looks at one file, not at those that its constants
come from. Here the machine code lies in the cache directory, below a name that all sources of the loops give together.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching

from aqe.artifact import digest
from aqe.storage import cache_directory

HERE = Path(__file__).parent
SOURCES = sorted(path for part in ("index", "impacts") for path in (HERE / part).glob("*.py"))
#: Where this code's loops lie, compiled.
DIRECTORY = cache_directory() / "numba" / digest([path.read_text() for path in SOURCES])

F = TypeVar("F", bound=Callable[..., Any])


class _ByContent(caching.UserWideCacheLocator):  # type: ignore[misc]
    """Finds machine code by what the code says, wherever this copy of it lies and however old it is."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(DIRECTORY / Path(file).parent.name)

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> "_ByContent | None":
        """None, which leaves it to numba, for others' functions and where the cache cannot be written."""
        locator: _ByContent | None = super().from_function(function, file) if Path(file) in SOURCES else None
        return locator

    def get_source_stamp(self) -> str:
        return DIRECTORY.name


caching.CacheImpl._locator_classes.insert(0, _ByContent)


def kept(room: str) -> bool:
    """Whether machine code of a room's loops lies here from an earlier process."""
    return any((DIRECTORY / room).glob("*.nbc"))


def compiled(function: F) -> F:
    """Compile at the first call, without Python's lock, for each set of types; kept for the next process."""
    machine_code: F = numba.njit(nogil=True, cache=True)(function)
    return machine_code


def borrowing(function: F) -> F:
    """The same for loops that allocate no array and keep none: they need not count references, which is atomic."""
    machine_code: F = numba.njit(nogil=True, cache=True, _nrt=False)(function)
    return machine_code


def quick(function: F) -> F:
    """The same for loops of microseconds, with Python's lock: to let it go and wait for it again would take longer."""
    machine_code: F = numba.njit(cache=True)(function)
    return machine_code
