"""What report, terminal and model card say of queries that nobody asked."""

from collections.abc import Sequence

from aqe.config.pipeline import PipelineConfig
from aqe.config.sources import SPLITS, Split


def synthetic_notice(config: PipelineConfig, model: str) -> str | None:
    """Which queries are synthetic, and what that means for the numbers; None where none are. `model` wrote them."""
    queries, reported = config.queries, config.evaluate.split
    if not queries.asked:
        return None
    named = {split: _named(config, split) for split in SPLITS if queries.synthetic(split)}
    depth = next(iter(queries.asked.values())).depth
    parts = [f"Synthetic queries: {joined(list(named.values()))}. {model} wrote them of passages of this corpus."]
    if "train" in named:
        whole = "; dev and test are not filtered" if len(named) > 1 else ""
        parts.append(f"Those of train are the ones whose passage BM25 finds within rank {depth}, but not first{whole}.")
    if reported in named:
        parts.append(
            f"The numbers are of synthetic {reported} queries: they say little about real ones. Judge by queries that "
            "people asked before you rely on them."
        )
    else:
        parts.append(f"The {reported} queries, which the numbers are of, are not synthetic.")
    return " ".join(parts)


def _named(config: PipelineConfig, split: Split) -> str:
    return f"{split} (in part)" if config.queries.sources(split) else split


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
