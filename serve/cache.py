"""Answers that a replica keeps, bounded in number and in bytes.

They are kept for the caller who asked: what another one gets, and how soon, tells nothing of it.
"""

import sys
from typing import Any

from cachetools import TTLCache

from aqe.config.serve import CacheConfig
from aqe.expand.recipe import Expansion
from aqe.observe import metrics

#: What an entry takes beside its texts: objects, keys, places in tables.
_ENTRY_BYTES, _EXPANSION_BYTES = 1_000, 300


class Cache:
    """Expansions by caller, query and options."""

    def __init__(self, config: CacheConfig) -> None:
        self._most = config.max_bytes if config.size else 0
        # One measure for both bounds: so many bytes that no more answers than allowed fit.
        self._least = self._most // config.size if config.size else 0
        self._kept: TTLCache[Any, tuple[Expansion, ...]] = TTLCache(self._most, config.ttl_s, getsizeof=self._size)

    def _size(self, expansions: tuple[Expansion, ...]) -> int:
        return max(self._least, _ENTRY_BYTES + sum(map(_bytes, expansions)))

    def get(self, key: Any) -> tuple[Expansion, ...] | None:
        """A kept answer. Counted: the hit rate is a metric."""
        known = self._kept.get(key)
        metrics.count(metrics.CACHE, 1, outcome="miss" if known is None else "hit")
        return known

    def keep(self, key: Any, expansions: tuple[Expansion, ...]) -> None:
        """Keep an answer, unless it alone is too long."""
        if self._size(expansions) <= self._most:
            self._kept[key] = expansions

    @property
    def bytes(self) -> float:
        """What is kept takes about so many."""
        return self._kept.currsize


def _bytes(expansion: Expansion) -> int:
    texts = (expansion.query, expansion.text, expansion.composed)
    return _EXPANSION_BYTES + sum(sys.getsizeof(text) for text in texts)
