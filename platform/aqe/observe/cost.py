"""What a stage took: hours of CPU cores and GPUs, and money where the configuration names a price."""

from collections.abc import Mapping
from typing import Any

from aqe.config.pipeline import PriceConfig


def money(stats: Mapping[str, Any], price: PriceConfig) -> float | None:
    """Price of a stage in the configured currency; None where none is configured for an hour that it took."""
    hours = {"cpu": stats["cpu_hours"], "gpu": stats["gpu_hours"]}
    prices = price.model_dump()
    if not any(hours.values()) or any(hours[kind] and prices[kind] is None for kind in hours):
        return None
    return float(sum(hours[kind] * (prices[kind] or 0.0) for kind in hours))


def describe(stats: Mapping[str, Any], price: PriceConfig) -> str:
    """One line from a stage's statistics: hours, hours per 1,000 of its rows (queries or passages), money."""
    rows = next((stats[name] for name in ("rows_in", "rows", "queries", "passages") if stats.get(name)), None)
    parts = []
    for kind in ("cpu", "gpu"):
        if hours := stats[f"{kind}_hours"]:
            each = f" ({1000 * hours / rows:.3g} per 1,000 rows)" if rows else ""
            parts.append(f"{hours:.3g} {kind.upper()} hours{each}")
    if (cost := money(stats, price)) is not None:
        parts.append(f"{cost:.2f} at the configured price")
    return ", ".join(parts) or "no time worth counting"
