"""Aligned Query Expansion (arXiv 2507.11042): an LLM learns to write the one expansion that BM25 needs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aqe.expand.expander import Expander

__all__ = ["Expander"]


def __getattr__(name: str) -> Any:
    # Lazily: `import aqe.config` must work without torch.
    if name == "Expander":
        from aqe.expand.expander import Expander

        return Expander
    raise AttributeError(f"module 'aqe' has no attribute {name!r}")
