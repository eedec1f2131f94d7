"""What a ranker is: exact gold ranks of a query with each of its candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class GoldRank:
    """The best-scored relevant passage of one searched text, and its exact rank.

    rank = 1 + passages with a higher score + passages with the same score and a smaller docid (bytes, ascending).
    Scores are float32. A relevant passage that shares no term with the text scores 0 and stands among all passages
    that do so too.
    """

    docid: str
    rank: int
    score: float


@dataclass(frozen=True)
class Hit:
    """One passage of a result list."""

    docid: str
    score: float


class Ranker(Protocol):
    """Scores passages for texts; one engine an actor."""

    name: str

    def gold_ranks(self, texts: Sequence[str], relevant: Sequence[str]) -> list[GoldRank]:
        """Exact gold rank of each text (the plain query, or query and expansion) against the same relevant passages.

        `relevant` are docids, at least one. Raises InputError when one of them is not in the index.
        """
        ...

    def search(self, text: str, k: int) -> list[Hit]:
        """The k best passages, by score descending, then docid ascending (bytes). Only passages with a score > 0."""
        ...
