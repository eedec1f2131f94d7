"""The composed query."""

import pytest

from aqe.expand.compose import compose
from aqe.sample.clean import clean, distinct_words


@pytest.mark.parametrize(
    ("query", "expansion", "weight", "expected"),
    [
        ("who wrote carmen?", "Bizet", 1, "who wrote carmen ? Bizet"),
        ("who wrote carmen ??", "Bizet", 1, "who wrote carmen ? Bizet"),
        ("who wrote carmen", "Bizet", 3, "who wrote carmen who wrote carmen who wrote carmen ? Bizet"),
        ("who wrote carmen?", "", 3, "who wrote carmen?"),
        ("who wrote carmen?", "  ", 1, "who wrote carmen?"),
    ],
)
def test_compose(query: str, expansion: str, weight: int, expected: str) -> None:
    assert compose(query, expansion, weight) == expected


def test_clean() -> None:
    assert clean("  a\n b\t c  ") == "a b c"
    assert clean(" \n") == ""


def test_distinct_words() -> None:
    assert distinct_words("whisper, whisper, Whisper, murmur, -- whisper") == "whisper, murmur,"
    assert distinct_words("") == distinct_words(" , ; ") == ""
    assert distinct_words("e-mail email") == "e-mail"
