"""The index beside the expander: hits with and without the expansion, and which term brought which passage up."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aqe.config.serve import SearchConfig
from aqe.impacts.gold import GoldRanker, open_gold_ranker
from aqe.index.analysis import query_analyzer
from aqe.ranker import Hit
from serve.passages import Passages, load_examples


@dataclass(frozen=True)
class Found:
    """Two result lists, ready to be sent."""

    plain_hits: list[dict[str, Any]]
    expanded_hits: list[dict[str, Any]]
    gold: list[dict[str, Any]]
    milliseconds: dict[str, float]


class Searcher:
    """Exact search and exact ranks in an impact index. The loops run in threads, without Python's lock."""

    def __init__(self, config: SearchConfig) -> None:
        self._ranker: GoldRanker = open_gold_ranker(config.impacts, config.index)
        self._analyze = query_analyzer(config.index.language, config.index.jvm_heap)
        self._passages = Passages(config.corpus) if config.corpus else None
        self.known = load_examples(config)
        if self.known:
            # Loops are compiled by their first use: not by the first request.
            self._search(self.known[0]["query"], "", self.known[0]["query"], 1, self.known[0]["gold"][:1])

    async def search(self, query: str, expansion: str, composed: str, k: int, gold: Sequence[str]) -> dict[str, Any]:
        """A `Found` as a dictionary. InputError when a gold passage is not in the index."""
        return asdict(await asyncio.to_thread(self._search, query, expansion, composed, k, gold))

    async def examples(self) -> list[dict[str, Any]]:
        """Known queries and their relevant passages."""
        return self.known

    def _search(self, query: str, expansion: str, composed: str, k: int, gold: Sequence[str]) -> Found:
        clock = [time.perf_counter()]

        def lap() -> float:
            clock.append(time.perf_counter())
            return round((clock[-1] - clock[-2]) * 1000, 3)

        ranks = {text: {d: self._rank(text, d) for d in gold} for text in (query, composed)}
        lap()
        plain = self._ranker.search(query, k)
        plain_ms = lap()
        expanded = self._ranker.search(composed, k)
        expanded_ms = lap()
        sources = self._sources(query, expansion)
        plain_hits = self._explained(plain, query, composed, sources, gold)
        expanded_hits = self._explained(expanded, composed, query, sources, gold)
        golds = [
            {"docid": d, "title": self._shown(d)[0], "plain_rank": ranks[query][d], "expanded_rank": ranks[composed][d]}
            for d in gold
        ]
        milliseconds = {"search_plain": plain_ms, "search_expanded": expanded_ms, "explain": lap()}
        return Found(plain_hits, expanded_hits, golds, milliseconds)

    def _sources(self, query: str, expansion: str) -> dict[str, tuple[list[str], str]]:
        """Indexed term -> the words that became it, and where they stand."""
        of_term: dict[str, tuple[list[str], set[str]]] = {}
        for source, text in (("query", query), ("expansion", expansion)):
            for word in text.split():
                for term in self._analyze(word):
                    words, where = of_term.setdefault(term, ([], set()))
                    where.add(source)
                    if word not in words:
                        words.append(word)
        return {t: (words, "both" if len(where) == 2 else next(iter(where))) for t, (words, where) in of_term.items()}

    def _explained(
        self,
        hits: Sequence[Hit],
        text: str,
        other: str,
        sources: dict[str, tuple[list[str], str]],
        gold: Sequence[str],
    ) -> list[dict[str, Any]]:
        terms, scores = self._ranker.contributions(text, [hit.docid for hit in hits])
        explained = []
        for i, hit in enumerate(hits):
            title, passage = self._shown(hit.docid)
            parts = sorted(
                ((float(scores[t, i]), term) for t, term in enumerate(terms) if scores[t, i] > 0), reverse=True
            )
            explained.append(
                {
                    "rank": i + 1,
                    "docid": hit.docid,
                    "score": hit.score,
                    "title": title,
                    "text": passage,
                    "rank_other": self._rank(other, hit.docid),
                    "terms": [_term(term, score, sources) for score, term in parts],
                    "gold": hit.docid in gold,
                }
            )
        return explained

    def _rank(self, text: str, docid: str) -> int | None:
        """A passage's exact rank; None where it shares no term with the text: a search would not find it."""
        (gold,) = self._ranker.gold_ranks([text], [docid])
        return gold.rank if gold.found else None

    def _shown(self, docid: str) -> tuple[str | None, str | None]:
        return self._passages.get(docid) if self._passages else (None, None)


def _term(term: str, score: float, sources: dict[str, tuple[list[str], str]]) -> dict[str, Any]:
    # A word that stands across a blank for the analyzer but not for us has no source of its own.
    words, source = sources.get(term, ([term], "query"))
    return {"term": term, "words": words, "source": source, "score": round(score, 4)}
