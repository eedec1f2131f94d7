"""Dead letters of an artifact (records.DEAD_LETTERS): where they lie, and how many there are for which reason.

Rows that were refused on reading are in `dead_letters.parquet`: they change only when the input does. Rows that failed
in a unit are in `dead_letters/`, in a file named as the unit's: they may do better when they are tried again.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow.dataset as pads

from aqe.artifact import parquet_files

#: Reasons that are told apart in a list; the others are added up.
LISTED = 20


def letters_of(artifact: Path) -> Path | None:
    """The file or the directory of an artifact's dead letters, if it has one."""
    file = artifact / "dead_letters.parquet"
    if file.exists():
        return file
    return artifact / "dead_letters" if failed_units(artifact) else None


def failed_units(artifact: Path) -> list[str]:
    """Names of the units in which rows failed, in their order."""
    return sorted(path.stem for path in (artifact / "dead_letters").glob("*.parquet"))


def reasons_of(letters: Path) -> Counter[str]:
    """How many rows there are for each reason."""
    # The rows themselves may be more than memory holds.
    files = [str(file) for file in parquet_files(letters)]
    reasons = pads.dataset(files, format="parquet").to_table(columns=["reason"])["reason"]
    return Counter({one["values"]: one["counts"] for one in reasons.value_counts().to_pylist()})


def listed(reasons: Counter[str]) -> dict[str, int]:
    """The commonest first. Those that hold something of their row may be as many as the rows: the rest is added up."""
    most = reasons.most_common(LISTED)
    others = reasons.total() - sum(count for _, count in most)
    return dict(most) | ({"other reasons": others} if others else {})


def common(reasons: Mapping[str, int]) -> str:
    """The commonest three in a line."""
    most = Counter(reasons).most_common(3)
    return "; ".join(f"{count} x {' '.join(why.split())[:200]}" for why, count in most)
