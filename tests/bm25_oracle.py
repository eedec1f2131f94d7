"""BM25 and gold ranks the slow, obvious way: the oracle of both ranking engines.

It knows Lucene's formula (Robertson's BM25 with idf = ln(1 + (N - df + 0.5) / (df + 0.5)), without the factor k1 + 1,
document lengths as one byte each) and nothing of the engines' code. Texts are words that the English analyzer leaves as
they are, so it needs no analyzer.
"""

import math
from collections import Counter

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


def bm25(corpus: dict[str, list[str]], text: str) -> dict[str, np.float32]:
    """Score of every passage, float64 inside and float32 at the end as Lucene adds them up."""
    n = sum(bool(words) for words in corpus.values())
    average = np.float32(sum(map(len, corpus.values())) / n)
    df = Counter(word for words in corpus.values() for word in set(words))
    scores = {}
    for docid, words in corpus.items():
        total = 0.0
        tf = Counter(words)
        for word, weight in Counter(text.split()).items():
            if tf[word]:
                idf = np.float32(math.log(1 + (n - df[word] + 0.5) / (df[word] + 0.5)))
                length = lucene_length(len(words))
                cache = np.float32(1) / (
                    np.float32(K1) * ((np.float32(1) - np.float32(B)) + np.float32(B) * np.float32(length) / average)
                )
                boosted = np.float32(weight) * idf
                total += float(boosted - boosted / (np.float32(1) + np.float32(tf[word]) * cache))
        scores[docid] = np.float32(total)
    return scores


def gold(scores: dict[str, np.float32], relevant: list[str]) -> tuple[str, int, float]:
    best = min(relevant, key=lambda d: (-scores[d], d.encode()))
    above = sum(s > scores[best] for s in scores.values())
    equal = sum(s == scores[best] and d.encode() < best.encode() for d, s in scores.items())
    return best, 1 + above + equal, float(scores[best])
