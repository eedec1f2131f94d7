"""What a ranker is: exact gold ranks of a query with each of its candidates."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

#: Passages of a result list that are kept.
DEPTH = 100


class GoldRank(NamedTuple):
    """The best-scored relevant passage of one searched text, and its exact rank.

    rank = 1 + passages with a higher score + passages with the same score and a smaller docid (bytes, ascending).
    Scores are float32. A passage that shares no term with the text scores 0, and no search returns it: it is not found.
    Where no relevant passage is found, `docid` is the smallest of theirs and rank = 1 + passages of the whole index,
    those without any term included: worse than any rank that is found, and the same for all such texts.
    """

    docid: str
    rank: int
    score: float

    @property
    def found(self) -> bool:
        """Whether a search returns it, however far down. Only then is it a hit at any depth."""
        return self.score > 0


class Hit(NamedTuple):
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


def ndcg(hits: Sequence[Hit], grades: Mapping[str, int], depth: int) -> float:
    """nDCG of the best `depth` passages with linear gains, as trec_eval has it (Järvelin & Kekäläinen 2002)."""
    gained = sum(grades.get(hit.docid, 0) / math.log2(i + 2) for i, hit in enumerate(hits[:depth]))
    ideal = sum(grade / math.log2(i + 2) for i, grade in enumerate(sorted(grades.values(), reverse=True)[:depth]))
    return gained / ideal
