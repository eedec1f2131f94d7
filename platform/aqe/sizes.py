"""How much a file or a directory takes, and how sizes and ages are written for people."""

import os
from pathlib import Path


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory. Links count nothing, nor does what vanishes meanwhile."""
    if path.is_symlink() or not path.is_dir():
        return _own(path)
    return sum(_own(Path(directory, name)) for directory, _, names in os.walk(path) for name in names)


def _own(path: Path) -> int:
    try:
        return 0 if path.is_symlink() else path.lstat().st_size
    except OSError:
        return 0


def size(amount: int) -> str:
    """`1_234_567` -> `1.2 MB`."""
    value, unit = float(amount), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 99.95 else f"{value:.1f} {unit}"


def age(seconds: float) -> str:
    """`7_300` -> `2 hours ago`, in the largest unit that there is one of."""
    for name, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"
