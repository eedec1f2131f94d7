"""BM25 and gold ranks the slow, obvious way: the oracle of both ranking engines.

It knows Lucene's formula (Robertson's BM25 with idf = ln(1 + (N - df + 0.5) / (df + 0.5)), without the factor k1 + 1,
document lengths as one byte each) and nothing of the engines' code. Texts are words that the English analyzer leaves as
they are, so it needs no analyzer.
"""

import math
from collections import Counter
from functools import cache

import numpy as np

WORDS = [a + b + "x" for a in "bdfgk" for b in "aeou"]
K1, B = 0.9, 0.4


def lucene_length(length: int) -> int:
    """A document length after its trip through Lucene's one byte: exact below 40, four significant bits above."""
    if length < 40:
        return length
    free = length - 24
    bits = free.bit_length()
    if bits < 4:
        return length
    shift = bits - 4
    return 24 + ((free >> shift) << shift)


def bm25(corpus: dict[str, list[str]], text: str, k1: float = K1, b: float = B) -> dict[str, np.float32]:
    """Score of every passage, float64 inside and float32 at the end as Lucene adds them up."""
    f32 = np.float32
    weights = Counter(text.split())
    n = sum(bool(words) for words in corpus.values())
    average = f32(sum(map(len, corpus.values())) / n)
    occurring = {docid: Counter(word for word in words if word in weights) for docid, words in corpus.items()}
    df = Counter(word for tf in occurring.values() for word in tf)

    @cache
    def score(word: str, tf: int, length: int) -> float:
        idf = f32(math.log(1 + (n - df[word] + 0.5) / (df[word] + 0.5)))
        with np.errstate(divide="ignore"):  # k1 = 0: whether a word occurs is all that counts.
            norm = f32(1) / (f32(k1) * ((f32(1) - f32(b)) + f32(b) * f32(lucene_length(length)) / average))
        boosted = f32(weights[word]) * idf
        return float(boosted - boosted / (f32(1) + f32(tf) * norm))

    return {
        docid: f32(sum(score(word, tf, len(corpus[docid])) for word, tf in found.items()))
        for docid, found in occurring.items()
    }


def gold(scores: dict[str, np.float32], relevant: list[str]) -> tuple[str, int, float]:
    best = min(relevant, key=lambda d: (-scores[d], d.encode()))
    if scores[best] == 0:
        return best, len(scores) + 1, 0.0
    above = sum(s > scores[best] for s in scores.values())
    equal = sum(s == scores[best] and d.encode() < best.encode() for d, s in scores.items())
    return best, 1 + above + equal, float(scores[best])
