"""The one place that knows numba: how loops are compiled, and where the machine code is kept.

Beside the code, numba's own choice, it would vanish with a Ray job's copy of the code; and compiling takes some ten
seconds. Numba looks at the age of one file only, not of those it takes constants from: the directory is named by all.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aqe.artifact import digest
from aqe.storage import cache_directory

_SOURCES = sorted(path for part in ("index", "impacts") for path in (Path(__file__).parent / part).glob("*.py"))
# Numba reads it when it is imported, which is below.
os.environ.setdefault(
    "NUMBA_CACHE_DIR", str(cache_directory() / "numba" / digest([path.read_text() for path in _SOURCES]))
)

import numba  # noqa: E402

F = TypeVar("F", bound=Callable[..., Any])


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
