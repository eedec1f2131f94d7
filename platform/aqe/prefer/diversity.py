"""How different a query's candidates are. Candidates that all look alike leave nothing to prefer."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

#: Beyond these the candidates have collapsed (the paper's warning sign: mean cosine towards 1).
COLLAPSED_COSINE, COLLAPSED_DISTINCT = 0.9, 0.05


def pairwise_cosine(texts: Sequence[str]) -> float:
    """Mean cosine of word counts over all pairs of texts; empty texts have cosine 0 with all. NaN below two texts."""
    if len(texts) < 2:
        return float("nan")
    total: dict[str, float] = defaultdict(float)
    filled = 0
    for text in texts:
        counts = Counter(text.lower().split())
        if norm := math.sqrt(sum(n * n for n in counts.values())):
            filled += 1
            for word, n in counts.items():
                total[word] += n / norm
    # |sum of unit vectors|^2 = number of vectors + twice the sum over pairs.
    pairs = (sum(v * v for v in total.values()) - filled) / 2
    return float(pairs / (len(texts) * (len(texts) - 1) / 2))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams of the texts (Li et al. 2016). NaN where there is none."""
    grams = [tuple(words[i : i + n]) for words in (t.lower().split() for t in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


#: What is measured of a query's candidates.
OF_CANDIDATES: Mapping[str, Callable[[Sequence[str]], float]] = {
    "mean_pairwise_cosine": pairwise_cosine,
    "distinct_1": lambda texts: distinct_n(texts, 1),
    "distinct_2": lambda texts: distinct_n(texts, 2),
}


def diversity_counts(texts: Sequence[str]) -> dict[str, float]:
    """What one query's candidates add to `diversity`: a value and a query for each measure that they have."""
    values = {name: measure(texts) for name, measure in OF_CANDIDATES.items()}
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    return known | {f"{name}_queries": 1 for name in known}


def diversity(counts: Mapping[str, float]) -> dict[str, float | None]:
    """Means over queries of what their candidates share, from added `diversity_counts`.

    None where no query has enough text to measure it.
    """
    return {
        name: round(counts[name] / counts[f"{name}_queries"], 4) if counts.get(f"{name}_queries") else None
        for name in OF_CANDIDATES
    }


def collapse_warning(measured: Mapping[str, float | None]) -> str | None:
    """A warning for people when the candidates have collapsed, else None."""
    cosine, distinct = measured["mean_pairwise_cosine"], measured["distinct_1"]
    if distinct is None:
        return "no candidate holds a word: look at the sampling prompt and its stop texts."
    if (cosine or 0.0) > COLLAPSED_COSINE or distinct < COLLAPSED_DISTINCT:
        return (
            f"the candidates of a query are nearly all alike (mean cosine {cosine or 0:.2f}, distinct-1 "
            f"{distinct:.2f}): there is little to prefer. Raise sample.temperature or top_k, or take another sampling "
            "prompt."
        )
    return None
