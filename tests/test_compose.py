"""The composed query."""

import pytest

from aqe.compose import clean, compose, distinct_words


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
    assert distinct_words("") == distinct_words(" , ; & + ") == ""
    assert distinct_words("C++ c# 3.5 35 e-mail E-mail, (e-mail)") == "C++ c# 3.5 35 e-mail"


def test_a_composed_query_holds_each_word_of_the_expansion_once_where_it_shall() -> None:
    assert compose("big dog?", "dog, hound, Hound dog.", 2, distinct=True) == "big dog big dog ? dog, hound,"
    assert compose("big dog?", "hound hound", 1) == "big dog ? hound hound"
    assert compose("big dog?", " , ; ", 2, distinct=True) == "big dog?"
