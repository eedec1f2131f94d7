"""Document shards in actors of their own, spread over the nodes: for a corpus that no single node can hold.

Exact all the same: the gold score comes from the shard that has the passage, the counts of all shards add up; no list
of hits is merged. An actor that is lost is started again on its file, and what was asked of it is asked again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from aqe.artifact import verify
from aqe.config.data import IndexConfig
from aqe.impacts.gold import check_analyzer
from aqe.impacts.scorer import ShardScorer
from aqe.impacts.terms import TermCounts
from aqe.index.shard import open_shard, shard_paths
from aqe.ranker import Hit


def spread_shards(directory: Path, config: IndexConfig, labels: Mapping[str, str]) -> "SpreadScorer":
    """One actor a shard of `directory`, on nodes with these labels; they live as long as the returned object or a copy.

    They take no core of their own: whoever asks holds one and waits.
    """
    actor = ray.remote(num_cpus=0, max_concurrency=64, max_restarts=10, max_task_retries=10)(_Shard)
    return SpreadScorer(
        [
            # A node gets no more shards than its memory holds.
            actor.options(
                scheduling_strategy="SPREAD", label_selector=dict(labels), memory=int(1.3 * path.stat().st_size)
            ).remote(path, config)
            for path in shard_paths(directory)
        ]
    )


class _Shard(ShardScorer):
    """A scorer that opens its own file."""

    def __init__(self, path: Path, config: IndexConfig) -> None:
        verify(path, patient=True)
        shard = open_shard(path)
        check_analyzer(shard, config)
        super().__init__(shard, config.k1, config.b)


class SpreadScorer:
    """All shards as one `aqe.impacts.scorer.Scorer`: asked at once, added up."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def scores(self, asked: TermCounts, docids: Sequence[str]) -> npt.NDArray[np.float32]:
        of_shards: list[npt.NDArray[np.float32]] = ray.get(
            [shard.scores.remote(asked, docids) for shard in self.actors]
        )
        # A passage lies in one shard; the others do not know it (NaN).
        best: npt.NDArray[np.float32] = np.fmax.reduce(of_shards)
        return best

    def counts(self, asked: TermCounts, golds: Sequence[tuple[float, str]]) -> npt.NDArray[np.int64]:
        counts: list[npt.NDArray[np.int64]] = ray.get([shard.counts.remote(asked, golds) for shard in self.actors])
        total: npt.NDArray[np.int64] = np.sum(counts, axis=0)
        return total

    def search(self, asked: TermCounts, k: int) -> list[Hit]:
        hits = ray.get([shard.search.remote(asked, k) for shard in self.actors])
        return sorted((hit for of_shard in hits for hit in of_shard), key=lambda hit: (-hit.score, hit.docid.encode()))[
            :k
        ]
