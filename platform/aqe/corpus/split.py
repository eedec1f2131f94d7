"""Splitting queries by rule: nearly the same questions stay together, and every run deals them out alike."""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from aqe.config.sources import SPLITS, Split
from aqe.config.splits import SharesConfig

#: Two questions with at least this share of their words in common (Jaccard) say nearly the same.
NEAR = 0.85

_WORD = re.compile(r"\w+")


def same_question(text: str) -> str:
    """What two texts of the same question share: case, blanks and the mark at the end do not count."""
    return " ".join(text.casefold().split()).rstrip(" ?.!")


def deal(texts: Sequence[str], shares: SharesConfig) -> list[Split]:
    """The split of each question: by a hash of the first, in the order of their texts, of those that say nearly the
    same. More questions change no other one's split, unless they say nearly the same as it.
    """
    groups = near_duplicates(texts)
    first: dict[int, str] = {}
    for group, text in zip(groups, map(same_question, texts), strict=True):
        first[group] = min(first.get(group, text), text)
    return [_split(first[group], shares) for group in groups]


def _split(question: str, shares: SharesConfig) -> Split:
    drawn = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) / 2**64
    for split in SPLITS[:-1]:
        share: float = getattr(shares, split)
        if drawn < share:
            return split
        drawn -= share
    return SPLITS[-1]


def near_duplicates(texts: Sequence[str]) -> list[int]:
    """A number for each text, the same for those that say nearly the same, over any chain of them.

    Exact: every pair with a Jaccard similarity of NEAR or more is joined. Only texts that share one of their rarest
    words are compared (prefix filtering, Chaudhuri et al. 2006), so tens of thousands of questions take seconds.
    """
    words = [frozenset(_WORD.findall(text.casefold())) or frozenset([text]) for text in texts]
    often = Counter(word for of in words for word in of)
    root = list(range(len(texts)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in _pairs(words, often):
        root[find(i)] = find(j)
    return [find(i) for i in range(len(texts))]


def _pairs(words: Sequence[frozenset[str]], often: Counter[str]) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose words are nearly the same; of equal ones each with the first."""
    first: dict[frozenset[str], int] = {}
    by_word: dict[str, list[int]] = defaultdict(list)
    for i, own in enumerate(words):
        if own in first:
            yield i, first[own]
            continue
        first[own] = i
        rarest = sorted(own, key=lambda word: (often[word], word))[: len(own) - math.ceil(NEAR * len(own)) + 1]
        for j in {j for word in rarest for j in by_word[word]}:
            shared = len(own & words[j])
            if shared >= NEAR * (len(own) + len(words[j]) - shared):
                yield i, j
        for word in rarest:
            by_word[word].append(i)
