"""Lucene's own classes of characters: `python -m aqe.index.freeze` prints aqe/index/characters.py anew.

The tokenizer is a finite automaton whose first table gives each code point a class: two characters of one class are
never told apart. The table is private; Java's reflection reads it.
"""

import textwrap
from itertools import groupby
from typing import Any

from aqe.errors import DependencyError
from aqe.index import jvm

TOKENIZER = "org.apache.lucene.analysis.standard.StandardTokenizerImpl"

#: Name of a class -> one of its characters. All characters of no class here are one more: no token has any of them.
EXAMPLES = {
    "ALetter": "a",
    "Hebrew_Letter": "א",
    "Hangul": "한",
    "Katakana": "ア",
    "Hiragana": "あ",
    "Han": "字",
    "Southeast_Asian": "ก",
    "Southeast_Asian_Mark": "\u0e31",
    "Digit": "0",
    "Numeric": "\u0660",
    "Single_Quote": "'",
    "Double_Quote": '"',
    "MidLetter": ":",
    "MidNum": ",",
    "MidNumLet": ".",
    "ExtendNumLet": "_",
    "Extend": "\u0301",
    "ZWJ": "\u200d",
    "Pictograph": "☃",
    "Letter_Pictograph": "ℹ",
    "Modifier": "\U0001f3fb",
    "Regional_Indicator": "\U0001f1e6",
    "Keycap_Base": "#",
    "Keycap": "\u20e3",
    "Text_Style": "\ufe0e",
    "Emoji_Style": "\ufe0f",
    "Tag": "\U000e0061",
    "Tag_End": "\U000e007f",
}

HEAD = '''"""The classes of characters that Lucene {lucene} tells apart when it cuts a text into tokens.

Not Unicode's of today: the tokenizer keeps those of the version that its grammar was written for. Made by
`python -m aqe.index.freeze > platform/aqe/index/characters.py`, which asks Lucene; never edited by hand.
"""

#: Name -> its ranges of code points: first and last in hexadecimal, one number where both are the same.
CLASSES = {{
'''


def classes(java: Any) -> list[int]:
    """The number of each code point's class, 0 to 0x10FFFF."""
    tokenizer = java("java.lang.Class").forName(TOKENIZER)
    handles, nothing = java("java.lang.invoke.MethodHandles").publicLookup(), java("java.util.ArrayList")()

    def table(name: str) -> list[int]:
        field = tokenizer.getDeclaredField(name)
        field.setAccessible(True)
        values: list[int] = handles.unreflectGetter(field).invokeWithArguments(nothing)
        return values

    # Blocks of 256, of which many are the same.
    top, blocks = table("ZZ_CMAP_TOP"), table("ZZ_CMAP_BLOCKS")
    return [kind for start in top for kind in blocks[start : start + 256]]


def frozen(java: Any) -> str:
    """The text of aqe/index/characters.py. DependencyError when this Lucene has other classes than EXAMPLES names."""
    kinds = classes(java)
    names = {kinds[ord(example)]: name for name, example in EXAMPLES.items()}
    rest = set(kinds) - set(names)
    lucene = java("org.apache.lucene.util.Version").LATEST.toString()
    if len(names) < len(EXAMPLES) or rest != {kinds[0]}:
        raise DependencyError(
            f"Lucene {lucene} has {len(set(kinds))} classes of characters where the grammar of aqe.index.english knows "
            f"{len(EXAMPLES) + 1}: read its StandardTokenizerImpl.jflex and follow it there."
        )
    ranges: dict[str, list[str]] = {name: [] for name in EXAMPLES}
    for kind, group in groupby(range(len(kinds)), kinds.__getitem__):
        if kind in names:
            first, *others = group
            ranges[names[kind]].append(f"{first:x}-{others[-1]:x}" if others else f"{first:x}")
    lines = textwrap.TextWrapper(120, break_on_hyphens=False)
    body = "".join(f'    "{name}": """\n{lines.fill(" ".join(r))}\n""",\n' for name, r in ranges.items())
    return HEAD.format(lucene=lucene) + body + "}\n"


if __name__ == "__main__":
    print(frozen(jvm.start()), end="")
