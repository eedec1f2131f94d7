"""Anserini's default English analysis without Java: Lucene's StandardTokenizer, possessives, case, stop words, Porter.

The stemmer is Martin Porter's own revision of his algorithm, as in Lucene: Snowball's, which is compiled, for the words
that it stems alike, and NLTK's in that mode for the rest. The tokenizer is Unicode's word segmentation (UAX 29) as a
regular expression over the same properties as Lucene's grammar.
"""

import re
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import regex
import Stemmer
from nltk.stem.porter import PorterStemmer

#: Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET.
STOP_WORDS = frozenset(
    {
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
        *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("will", "with"),
    }
)
#: StandardTokenizer reads no further than this for one token (in UTF-16 units; here in characters).
MAX_TOKEN = 255


def _grammar() -> "regex.Pattern[str]":
    """StandardTokenizerImpl.jflex, rule for rule; `x` is what may follow any character without ending the word."""
    x = r"[\p{WB=Format}\p{WB=Extend}\p{WB=ZWJ}]*+"

    def chars(*names: str) -> str:
        return "[" + "".join(rf"\p{{WB={name}}}" for name in names) + "]" + x

    hebrew, katakana = chars("Hebrew_Letter"), chars("Katakana")
    quote = rf"(?:{chars('Single_Quote')}|{chars('Double_Quote')}{hebrew})"
    # JFlex takes the longest match: a Hebrew letter is not torn from its quote, unless it is the one that ends a word.
    letter, any_letter = rf"(?:{chars('ALetter')}|{hebrew}(?!{quote}))", chars("ALetter", "Hebrew_Letter")
    number, joiner = rf"[\p{{WB=Numeric}}[０-９]]{x}", chars("ExtendNumLet")
    in_word, in_number = chars("MidLetter", "MidNumLet", "Single_Quote"), chars("MidNum", "MidNumLet", "Single_Quote")
    numbers = rf"{number}(?:(?:(?:{joiner})*|{in_number}){number})*"
    letters = rf"{letter}(?:(?:{joiner})*{letter}|{in_word}{any_letter})*"
    part = rf"(?:{katakana}(?:(?:{joiner})*{katakana})*|(?:{hebrew}{quote}|{numbers}|{letters})+)"
    # Only where a row of joiners begins: from each of them, a long row would be tried in quadratic time.
    word = rf"(?<!\p{{WB=ExtendNumLet}})(?:{joiner})*+{part}(?:(?:{joiner})++{part})*+(?:{joiner})*+"
    asian = rf"(?:\p{{LB=SA}}{x})+|[\p{{Script=Han}}\p{{Script=Hiragana}}]{x}"
    pictograph = r"\p{Extended_Pictographic}\p{EMod}?\uFE0F?"
    emoji = rf"\p{{RI}}{{2}}|[0-9#*]\uFE0F?\u20E3|(?:\u200D*{pictograph}|\p{{EMod}})(?:{x}(?<=\u200D){pictograph})*{x}"
    return regex.compile(rf"(?V1){word}|{asian}|{emoji}")


_TOKEN = _grammar()
_NUMBERS, _LETTERS = r"[0-9](?:(?:_*|[.,;'])[0-9])*", r"[A-Za-z](?:(?:_*|[.:'])[A-Za-z])*"
#: The same grammar where all is ASCII: ten times faster.
_ASCII_TOKEN = re.compile(rf"(?<!_)_*+(?:{_NUMBERS}|{_LETTERS})+(?:_++(?:{_NUMBERS}|{_LETTERS})+)*_*+")
_STEMMER = PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)
#: What Snowball stems otherwise: Porter revised the endings -bli and -logi, and any two equal consonants become one.
_REVISED = re.compile(r"bl[iy]|log[iy]|([^aeioubdfgmnprt])\1(?:ed|ing)")
_local = threading.local()


def _snowball(token: str) -> str:
    # Each thread has one: it keeps its word while it works.
    if not hasattr(_local, "stemmer"):
        _local.stemmer = Stemmer.Stemmer("porter", 0)
    return str(_local.stemmer.stemWord(token))


def _term(token: str) -> str | None:
    """The indexed form of a token; None for a stop word."""
    if len(token) > 2 and token[-1] in "sS" and token[-2] in "'’＇":
        token = token[:-2]
    # Java lowers one character at a time: no final sigma, no second character for a dotted I.
    token = token.replace("Σ", "σ").replace("İ", "i").lower()
    if token in STOP_WORDS:
        return None
    if token.isascii() and len(token) > 2 and not _REVISED.search(token):
        return _snowball(token)
    if max(token) <= "\uffff":
        return str(_STEMMER.stem(token, to_lowercase=False))
    # Java stems UTF-16 units.
    units = token.encode("utf-16-le", "surrogatepass")
    halves = "".join(chr(units[i] | units[i + 1] << 8) for i in range(0, len(units), 2))
    return str(_STEMMER.stem(halves, to_lowercase=False)).encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def _tokens(chunk: str) -> Iterator[str]:
    pattern: Any = _ASCII_TOKEN if chunk.isascii() else _TOKEN
    at = 0
    while match := pattern.search(chunk, at):
        token, start = match.group(), match.start()
        if len(token) > MAX_TOKEN:
            # A row of joiners that fills all of it is no word: it is read from where a letter comes into sight.
            start += max(0, len(token) - len(token.lstrip("_")) - MAX_TOKEN + 1)
            shorter = pattern.match(chunk[start : start + MAX_TOKEN])
            token = shorter.group() if shorter else chunk[start : start + MAX_TOKEN]
            # What follows is read as if nothing stood before it.
            chunk, start = chunk[start + len(token) :], -len(token)
        yield token
        at = start + len(token)


def _terms(chunk: str) -> tuple[str, ...]:
    """Terms of what stands between two blanks."""
    # Most are a word and nothing else.
    plain = chunk.isascii() and chunk.isalpha() and len(chunk) <= MAX_TOKEN
    tokens = (chunk,) if plain else _tokens(chunk)
    return tuple(term for token in tokens if (term := _term(token)) is not None)


#: Words are met again, and kept, so many of them; what is longer than a word mostly is not.
WORDS, LONG = 1 << 17, 40


class _Known(dict[str, tuple[str, ...]]):
    """Terms of every chunk that was met before; looked up without a call of Python's."""

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        terms = _terms(chunk)
        if len(chunk) < LONG:
            if len(self) >= WORDS:
                self.clear()
            self[chunk] = terms
        return terms


_known = _Known()


def analyze(text: str) -> list[str]:
    """Terms of a text in order, repeated as they occur."""
    # No word goes across a blank, and most of what stands between two of them was met before. Other white space is left
    # to the grammar: a narrow no-break space joins.
    return list(chain.from_iterable(map(_known.__getitem__, text.split(" "))))
