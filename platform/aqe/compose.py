"""From what a model wrote to the one query that is searched: in the reward, in evaluation and in serving."""

from collections.abc import Iterator

#: What may stand around a word. `+` and `#` are not in it: C++ and C# are words of their own.
_AROUND = " ,.;:!?\"'()[]{}<>/\\|-–—…*_~`“”‘’«»"


def clean(raw: str) -> str:
    """One line, without the blanks around it and in runs: what is appended to the query. May be empty."""
    return " ".join(raw.split())


def compose(query: str, expansion: str, query_weight: int = 1, distinct: bool = False) -> str:
    """Query without its final question mark, ` ? `, expansion (EAR, arXiv 2305.17080).

    `query_weight` repeats the query, as query2doc does: BM25 counts repeated terms linearly. With `distinct` each word
    of the expansion is searched once. An empty expansion leaves the query as it is, because weighting all terms alike
    changes no rank.
    """
    if distinct:
        expansion = distinct_words(expansion)
    if not expansion.strip():
        return query
    stripped = query.strip().rstrip("?").rstrip()
    return " ".join([stripped] * query_weight) + " ? " + expansion


def distinct_words(expansion: str) -> str:
    """Each word once, where it first stands; case and punctuation around it make no other word, and are none alone."""
    first: dict[str, str] = {}
    for key, word in _keyed(expansion):
        first.setdefault(key, word)
    return " ".join(first.values())


def repeats(expansion: str) -> int:
    """Words that stand in it before, as `distinct_words` tells words apart."""
    keys = [key for key, _ in _keyed(expansion)]
    return len(keys) - len(set(keys))


def _keyed(expansion: str) -> Iterator[tuple[str, str]]:
    """What tells a word from others, and the word."""
    for word in expansion.split():
        key = word.strip(_AROUND).lower()
        if any(map(str.isalnum, key)):
            yield key, word
