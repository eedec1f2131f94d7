"""From the text that a model wrote to the text that is searched."""

import re


def clean(raw: str) -> str:
    """One line, without the blanks around it and in runs: what is appended to the query. May be empty."""
    return " ".join(raw.split())


def distinct_words(expansion: str) -> str:
    """Each word once, where it first stands; case and punctuation make no other word, and punctuation alone is none."""
    first: dict[str, str] = {}
    for word in expansion.split():
        if key := re.sub(r"\W", "", word).lower():
            first.setdefault(key, word)
    return " ".join(first.values())
