"""Anserini's default English analysis without Java: Lucene's StandardTokenizer, possessives, case, stop words, Porter.

The stemmer is Martin Porter's own revision of his algorithm, as in Lucene: Snowball's, which is compiled, for the words
that it stems alike, and NLTK's in that mode for the rest. The tokenizer is Unicode's word segmentation (UAX 29) and its
emoji as a regular expression over Lucene's own classes of characters.
"""

import re
import threading
from collections.abc import Iterator
from itertools import chain
from string import ascii_letters

import Stemmer
from nltk.stem.porter import PorterStemmer

from aqe.index.characters import CLASSES

#: Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET.
STOP_WORDS = frozenset(
    {
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
        *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("will", "with"),
    }
)
#: StandardTokenizer reads no further than this for one token, in UTF-16 units.
MAX_TOKEN = 255


#: A letter for each class of characters, and one for the rest.
_LETTERS_OF, _REST = dict(zip(CLASSES, ascii_letters, strict=False)), "-"


def _kinds() -> str:
    """The letter of each code point's class, up to the last that has one."""
    ranges = []
    for name, text in CLASSES.items():
        for part in text.split():
            first, _, last = part.partition("-")
            ranges.append((int(first, 16), int(last or first, 16) + 1, _LETTERS_OF[name]))
    kinds, known = [], 0
    for start, stop, letter in sorted(ranges):
        kinds += [_REST * (start - known), letter * (stop - start)]
        known = stop
    return "".join(kinds)


def _grammar() -> "re.Pattern[str]":
    """StandardTokenizerImpl.jflex over the letters of classes; `x` may follow any character without ending the word."""

    def chars(*names: str) -> str:
        return "[" + "".join(_LETTERS_OF[name] for name in names) + "]"

    marks = ("Extend", "Southeast_Asian_Mark", "ZWJ", "Modifier", "Tag", "Tag_End")
    x = chars(*marks, "Keycap", "Text_Style", "Emoji_Style") + "*+"
    hebrew, katakana = chars("Hebrew_Letter") + x, chars("Katakana") + x
    quote = rf"(?:{chars('Single_Quote')}{x}|{chars('Double_Quote')}{x}{hebrew})"
    # JFlex takes the longest match: a Hebrew letter is not torn from its quote, unless it is the one that ends a word.
    others = ("ALetter", "Hangul", "Letter_Pictograph")
    letter, any_letter = rf"(?:{chars(*others)}{x}|{hebrew}(?!{quote}))", chars(*others, "Hebrew_Letter") + x
    number, joiner = chars("Digit", "Numeric") + x, chars("ExtendNumLet") + x
    in_word = chars("MidLetter", "MidNumLet", "Single_Quote") + x
    in_number = chars("MidNum", "MidNumLet", "Single_Quote") + x
    numbers = rf"{number}(?:(?:(?:{joiner})*|{in_number}){number})*"
    letters = rf"{letter}(?:(?:{joiner})*{letter}|{in_word}{any_letter})*"
    part = rf"(?:{katakana}(?:(?:{joiner})*{katakana})*|(?:{hebrew}{quote}|{numbers}|{letters})+)"
    # Only where a row of joiners begins: from each of them, a long row would be tried in quadratic time.
    word = rf"(?<!{chars('ExtendNumLet')})(?:{joiner})*+{part}(?:(?:{joiner})++{part})*+(?:{joiner})*+"
    asian = rf"(?:{chars('Southeast_Asian', 'Southeast_Asian_Mark')}{x})+|{chars('Han', 'Hiragana')}{x}"

    # In an emoji the style selectors are no marks: they end it, but for a few that may follow.
    zwj, modifier, style = chars("ZWJ"), chars("Modifier"), chars("Emoji_Style")
    e = chars(*marks, "Keycap") + "*+"

    def linked(pictograph: str) -> str:
        return rf"(?:(?<={zwj})|{style}(?:{zwj}++|{zwj}{modifier}{e}(?<={zwj}))){pictograph}{e}"

    either, lettered = chars("Pictograph", "Letter_Pictograph"), chars("Letter_Pictograph")
    tail = rf"(?:{linked(either)})*+(?:{style}(?:{zwj}{modifier}{e})?)?"
    flag = rf"{style}{chars('Tag')}++{chars('Tag_End')}"
    # ZWJ before it, as many as there are: again only where their row begins.
    before = rf"(?:(?<!{zwj}){zwj}++)?+"
    emoji = rf"{before}{either}{e}(?:{flag}|{tail})|{modifier}{e}(?:(?<={zwj}){either}{e}{tail})?"
    # What begins as a word does: longer than the word only where a pictograph follows that is no letter.
    longer = rf"{lettered}{e}(?:{linked(lettered)})*+{linked(chars('Pictograph'))}{tail}"
    region, base, cap = chars("Regional_Indicator") + x, chars("Keycap_Base"), chars("Keycap")
    keycap = rf"{base}(?:{e}{style}{cap}|{chars(*marks)}*{cap}){e}"
    return re.compile(rf"{longer}|{word}|{asian}|{emoji}|{region}{region}|{keycap}")


_KINDS, _TOKEN = _kinds(), _grammar()
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
    if not token.isascii():
        # Java lowers one character at a time: no final sigma, no second character for a dotted I.
        token = token.replace("Σ", "σ").replace("İ", "i")
    token = token.lower()
    if token in STOP_WORDS:
        return None
    if token.isascii():
        # Words of two letters are not stemmed.
        if len(token) <= 2:
            return token
        if not _REVISED.search(token):
            return _snowball(token)
    if max(token) <= "\uffff":
        return str(_STEMMER.stem(token, to_lowercase=False))
    # Java stems UTF-16 units.
    units = token.encode("utf-16-le", "surrogatepass")
    halves = "".join(chr(units[i] | units[i + 1] << 8) for i in range(0, len(units), 2))
    return str(_STEMMER.stem(halves, to_lowercase=False)).encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def _reach(chunk: str, start: int) -> int:
    """How many characters from `start` Lucene reads for one token; no surrogate pair is cut."""
    units = chunk[start : start + MAX_TOKEN].encode("utf-16-le", "surrogatepass")
    return len(units[: 2 * MAX_TOKEN].decode("utf-16-le", "ignore"))


def _tokens(chunk: str) -> Iterator[str]:
    # As many letters as characters: what the pattern finds in the one stands there in the other.
    pattern, kinds = (_ASCII_TOKEN, chunk) if chunk.isascii() else (_TOKEN, chunk.translate(_KINDS))
    at = 0
    while match := pattern.search(kinds, at):
        start, end = match.span()
        if 2 * (end - start) > MAX_TOKEN and end - start > _reach(chunk, start):
            # What Lucene sees of it may be no token, a row of joiners for one: then the next character begins.
            while not (match := pattern.match(kinds[start : start + _reach(chunk, start)])):
                start += 1
                if start == len(kinds):
                    return
            end = start + match.end()
            yield chunk[start:end]
            # What follows is read as if nothing stood before it.
            chunk, kinds, at = chunk[end:], kinds[end:], 0
        else:
            yield chunk[start:end]
            at = end


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
