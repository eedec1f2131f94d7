"""What a comparison shows. The interval and the test must say the same, or nothing is claimed."""

from collections.abc import Mapping
from typing import Any, Literal

Outcome = Literal["better", "worse", "not proven"]


def excludes_zero(difference: Mapping[str, float]) -> bool:
    """Whether the interval of a difference lies on one side of 0."""
    return difference["low"] > 0 or difference["high"] < 0


def significant(p: float, confidence: float) -> bool:
    """Whether a p-value is as small as the confidence of the intervals asks: below 0.05 for 95 %."""
    return p < 1 - confidence - 1e-12


def outcome(difference: Mapping[str, float], p: float, confidence: float) -> Outcome:
    """Of a difference with its interval and its p-value."""
    if not (excludes_zero(difference) and significant(p, confidence)):
        return "not proven"
    return "better" if difference["low"] > 0 else "worse"


def of_pair(metrics: Mapping[str, Any], pair: str, measure: str = "mrr") -> Outcome:
    """Of a pair of systems, `<a>_vs_<b>`, over all queries that both cover."""
    p = metrics["comparisons"][pair]["p_values"][measure]
    return outcome(metrics["differences"][pair][measure], p, metrics["confidence"])


def of_part(metrics: Mapping[str, Any], part: str, pair: str, measure: str = "mrr") -> Outcome:
    """The same on one test set or pool. On several sets p is the one that is corrected for being several (Holm)."""
    of = metrics["parts"][part]
    p = of.get("holm", {}).get(measure, {}).get(pair, of["p_values"][measure][pair])
    return outcome(of["differences"][pair][measure], p, metrics["confidence"])
