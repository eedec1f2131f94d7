"""What ranks and searches: an index, BM25's settings, and the engine that reads it in a pool's actors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aqe.artifact import Artifact
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.index import jvm
from aqe.index.analysis import PACKAGES, VERSION, needs_java, query_analyzer
from aqe.nodes import Nodes
from aqe.ranker import Ranker
from aqe.units import Pool


@dataclass(frozen=True)
class Retriever:
    """One way to search a corpus: the same for candidates, for evaluation, and for what is served."""

    index: Artifact
    """Of impact_index, or of lucene_index for `rank.engine: lucene`."""
    config: RankConfig
    bm25: IndexConfig

    def at(self, k1: float, b: float) -> "Retriever":
        """The same with another setting of BM25."""
        return replace(self, bm25=self.bm25.model_copy(update={"k1": k1, "b": b}))

    def settings(self, *composing: str) -> dict[str, Any]:
        """What decides a result, for a fingerprint: composing queries, the keys `composing` too, BM25, the analysis."""
        names = {"engine", "query_weight", "distinct_words", *composing}
        analysis = {"analysis": VERSION} if self._analyzes_in_python else {}
        return {**self.config.model_dump(include=names), **self.bm25.model_dump(include={"k1", "b"}), **analysis}

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose version changes a query's terms; Lucene's own are named by the index."""
        return PACKAGES if self._analyzes_in_python else ()

    @property
    def _analyzes_in_python(self) -> bool:
        return self.config.engine == "impacts" and not needs_java(self.bm25.language)

    @property
    def reads(self) -> tuple[Path, ...]:
        """What each of a pool's actors opens. Shards that are spread over nodes are opened by actors of their own."""
        return () if self.spread else (self.index.path,)

    @property
    def spread(self) -> bool:
        """Whether the index' shards lie on nodes of their own, each with a process that ranks."""
        return self.config.engine == "impacts" and self.config.spread_shards

    def pool(self, nodes: Nodes) -> Pool:
        """One actor a CPU core, with what a JVM needs inside Ray where the engine or the language wants one."""
        if self.config.engine == "lucene" or needs_java(self.bm25.language):
            return self.java_pool(nodes)
        return Pool(self._workers(nodes), num_cpus=0.9, labels=nodes.labels)

    def java_pool(self, nodes: Nodes) -> Pool:
        """The same number of actors, each with what a JVM needs inside Ray."""
        return Pool(self._workers(nodes), num_cpus=0.9, env=jvm.ray_env(), labels=nodes.labels)

    def _workers(self, nodes: Nodes) -> int:
        return self.config.workers or sum(nodes.cpus)

    def source(self, labels: Mapping[str, str]) -> "RankerSource":
        """What a pool's actors open. With `rank.spread_shards` the shards' actors start here, on labelled nodes."""
        if self.spread:
            from aqe.impacts.spread import spread_shards

            return RankerSource(
                self.config, self.index.path, self.bm25, spread_shards(self.index.path, self.bm25, labels)
            )
        return RankerSource(self.config, self.index.path, self.bm25)


@dataclass(frozen=True)
class RankerSource:
    """Where an actor's ranker comes from: files of an index, or shards spread over nodes."""

    config: RankConfig
    index: Path
    bm25: IndexConfig
    shards: Any = None

    @property
    def one_setting(self) -> bool:
        """Shards that are spread over nodes have one setting of BM25, for all who ask them."""
        return self.shards is not None

    @property
    def opening(self) -> str:
        if self.config.engine == "impacts" and self.shards is None:
            from aqe.compiled import kept

            if not kept("impacts"):
                return "compiling the ranking loops, once for this machine"
        return "opening the index"

    def open_at(self) -> Callable[[float, float], Ranker]:
        """Opens the index once, for any k1 and b. What the function gave before may not be used after it."""
        if self.one_setting:
            return lambda k1, b: self.open()
        if self.config.engine == "lucene":
            from aqe.rank.lucene import LuceneRanker

            ranker = LuceneRanker(self.index / "lucene", self.bm25)

            def at(k1: float, b: float) -> Ranker:
                ranker.set_bm25(k1, b)
                return ranker

            return at
        from aqe.impacts.gold import open_gold_rankers

        return open_gold_rankers(self.index, self.bm25)

    def open(self) -> Ranker:
        """The engine that `rank.engine` names."""
        if self.config.engine == "lucene":
            from aqe.rank.lucene import LuceneRanker

            return LuceneRanker(self.index / "lucene", self.bm25)
        from aqe.impacts.gold import GoldRanker, open_gold_ranker

        if self.shards is not None:
            return GoldRanker([self.shards], query_analyzer(self.bm25.language, self.bm25.jvm_heap))
        return open_gold_ranker(self.index, self.bm25)
