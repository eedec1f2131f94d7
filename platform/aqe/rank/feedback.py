"""Anserini's RM3: the query with words of its best passages (Lavrenko & Croft 2001; Abdul-Jaleel et al. 2004).

The strongest control that needs no language model. Its lists are cut: what is not among the first DEPTH is not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aqe.config.data import IndexConfig
from aqe.index import jvm
from aqe.ranker import Hit

#: Passages of a list.
DEPTH = 1_000


class Rm3(NamedTuple):
    """Anserini's three settings."""

    passages: int
    """Best passages that give words."""
    terms: int
    """Words that are taken."""
    weight: float
    """Of the query's own words; the rest is that of the new ones."""


@dataclass(frozen=True)
class FeedbackSource:
    """Where an actor's searcher comes from: a Lucene index that stores its passages' terms."""

    index: Path
    bm25: IndexConfig

    @property
    def opening(self) -> str:
        return "opening Lucene's index"

    def open(self) -> "FeedbackSearcher":
        return FeedbackSearcher(self.index / "lucene", self.bm25)


class FeedbackSearcher:
    """Searches with RM3. Starts the JVM of this process."""

    def __init__(self, index: Path, config: IndexConfig) -> None:
        jvm.start(config.jvm_heap)
        from pyserini.search.lucene import LuceneSearcher

        self._searcher = LuceneSearcher(str(index))
        self._searcher.set_bm25(config.k1, config.b)
        # What is there already analyzes as the index was: the default is English with Porter stems.
        self._english = config.language == "en"
        if not self._english:
            self._searcher.set_language(config.language)
        self._set: Rm3 | None = None

    @property
    def num_passages(self) -> int:
        return int(self._searcher.num_docs)

    def search(self, text: str, rm3: Rm3) -> list[Hit]:
        """The first DEPTH passages, all of them with a score above 0."""
        if rm3 != self._set:
            # Anserini's filter of terms keeps Latin letters and digits alone: right for English.
            self._searcher.set_rm3(
                fb_terms=rm3.terms,
                fb_docs=rm3.passages,
                original_query_weight=rm3.weight,
                filter_terms=self._english,
            )
            self._set = rm3
        # With all weight on the query's own words the new ones match, too, at no score.
        return [Hit(hit.docid, float(hit.score)) for hit in self._searcher.search(text, k=DEPTH) if hit.score > 0]


def rank_in(hits: Sequence[Hit], relevant: Sequence[str], passages: int) -> tuple[str, int, float]:
    """docid, rank and score of the first relevant hit; where there is none the smallest docid, passages + 1 and 0."""
    wanted = set(relevant)
    for rank, hit in enumerate(hits, 1):
        if hit.docid in wanted:
            return hit.docid, rank, hit.score
    return min(wanted, key=str.encode), passages + 1, 0.0
