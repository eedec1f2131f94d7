"""In which script passages are written: the English analyzer knows nothing of most others."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

#: First word of a character's Unicode name -> (what the script is called, the languages of `index.language` for it).
SCRIPTS = {
    "CJK": ("Chinese", ("zh",)),
    "HIRAGANA": ("Japanese", ("ja",)),
    "KATAKANA": ("Japanese", ("ja",)),
    "HANGUL": ("Korean", ("ko",)),
    "THAI": ("Thai", ("th",)),
    "ARABIC": ("Arabic", ("ar", "fa")),
    "CYRILLIC": ("Cyrillic", ("ru", "uk")),
    "DEVANAGARI": ("Devanagari", ("hi",)),
    "BENGALI": ("Bengali", ("bn",)),
    "TELUGU": ("Telugu", ("te",)),
}
#: Characters of a text that are looked at.
_LOOKED_AT = 2_000


def other_script(texts: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """(name, languages) of the script of most letters, None where the Latin one or one that nobody lists is commonest.

    Japanese is told from Chinese by its own letters, which stand among the characters that both have.
    """
    letters = Counter(unicodedata.name(c, "").split(" ")[0] for text in texts for c in text[:_LOOKED_AT] if c.isalpha())
    kana = letters["HIRAGANA"] + letters["KATAKANA"]
    if kana > 0.05 * letters["CJK"]:
        letters["HIRAGANA"] += letters.pop("CJK", 0)
    of_script = Counter({name: letters[name] for name in SCRIPTS})
    name, number = of_script.most_common(1)[0]
    return SCRIPTS[name] if number > letters.total() / 2 else None
