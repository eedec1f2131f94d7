"""Exact gold ranks from the impact index: what the platform exists for.

Peers fetch the best 100 or 1,000 passages and look for the relevant one: slow, and blind below the cut. Here the gold
score comes first (Lucene's arithmetic, a search in a few postings); then one pass counts the passages that stand before
it, for all candidates of a query at once and to any depth.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqe.config.data import IndexConfig
from aqe.errors import ArtifactError, DataError
from aqe.impacts.scorer import Scorer, ShardScorer
from aqe.impacts.terms import TermCounts, count_terms
from aqe.index.analysis import Analyze, query_analyzer
from aqe.index.shard import Shard, open_shards
from aqe.ranker import GoldRank, Hit


class GoldRanker:
    """Implements `aqe.ranker.Ranker` on the parts of a corpus, whose counts add up."""

    name = "impacts"

    def __init__(self, parts: Sequence[Scorer], analyze: Analyze) -> None:
        self._parts = parts
        self._analyze = analyze

    def gold_ranks(self, texts: Sequence[str], relevant: Sequence[str]) -> list[GoldRank]:
        docids = sorted(set(relevant), key=str.encode)
        asked, places = count_terms([self._analyze(text) for text in texts])
        different = asked.counts.shape[1]
        scores = np.full((different, len(docids)), np.nan, np.float32)
        for part in self._parts:
            of_part = part.scores(asked, docids)
            scores = np.where(np.isnan(scores), of_part, scores)
        if np.isnan(scores).any():
            missing = docids[int(np.isnan(scores).any(axis=0).argmax())]
            raise DataError(
                f"the relevant passage {missing!r} is not in the index. The qrels belong to another corpus, or the "
                "index was built from a part of it: run judge_queries and build_index on the same corpus."
            )
        # argmax takes the first of equals, which has the smallest docid.
        best = scores.argmax(axis=1)
        golds = [(float(scores[i, at]), docids[at]) for i, at in enumerate(best)]
        before = sum((part.counts(asked, golds) for part in self._parts), np.zeros(different, np.int64))
        ranks = [GoldRank(docid, 1 + int(count), score) for (score, docid), count in zip(golds, before, strict=True)]
        return [ranks[place] for place in places]

    def search(self, text: str, k: int) -> list[Hit]:
        asked, _ = count_terms([self._analyze(text)])
        hits = [hit for part in self._parts for hit in part.search(asked, k)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.docid.encode()))[:k]

    def contributions(self, text: str, docids: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
        """Terms of the text, and what each gives each passage's score: (terms, docids), 0 where it does not occur.

        Lucene adds these up in float64; a passage that is not in the index gets zeros.
        """
        asked, _ = count_terms([self._analyze(text)])
        # Each term as a text of its own, as often as it occurs.
        alone = TermCounts(asked.words, np.diag(asked.counts[:, 0]).astype(np.float32))
        scores = np.zeros((len(asked.words), len(docids)), np.float32)
        for part in self._parts:
            scores += np.nan_to_num(part.scores(alone, docids))
        return asked.words, scores


def open_gold_ranker(directory: Path, config: IndexConfig) -> GoldRanker:
    """The ranker on all shards that build_impacts left in `directory`, mapped into this process' memory.

    Raises ArtifactError when they are missing, corrupt, or were analyzed otherwise than the queries would be.
    """
    return open_gold_rankers(directory, config)(config.k1, config.b)


def open_gold_rankers(directory: Path, config: IndexConfig) -> Callable[[float, float], GoldRanker]:
    """As `open_gold_ranker`, for any k1 and b: the shards are mapped and checked once."""
    shards = open_shards(directory)
    for shard in shards:
        check_analyzer(shard, config)
    analyze = query_analyzer(config.language, config.jvm_heap)
    return lambda k1, b: GoldRanker([ShardScorer(shard, k1, b) for shard in shards], analyze)


def check_analyzer(shard: Shard, config: IndexConfig) -> None:
    """ArtifactError when queries would be analyzed otherwise than the passages of a shard were."""
    if shard.analyzer != config.language:
        raise ArtifactError(
            f"{shard.path} was made with the analyzer {shard.analyzer!r}, but index.language is {config.language!r}: "
            "its terms and the queries' would not meet. Use one of the two for both."
        )
