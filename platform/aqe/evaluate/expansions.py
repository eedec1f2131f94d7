"""What expansions look like: empty, merely copied, long, giving the answer away; and cut to their first words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aqe.compose import distinct_words, repeats

_WORD = re.compile(r"\w+")
#: What a cut leaves hanging at the end.
_TRAILING = " \t\r\n,;:.!?-–—…/&(["


def words(text: str) -> list[str]:
    """Lower-case word tokens; punctuation and blanks are not words."""
    return _WORD.findall(text.lower())


def is_empty(expansion: str) -> bool:
    """No word in it: the search is that of the plain query."""
    return not words(expansion)


def is_copied(query: str, expansion: str) -> bool:
    """Every word of it stands in the query already: it can reweight terms but adds none. Empty ones do not count."""
    said = words(expansion)
    return bool(said) and set(said) <= set(words(query))


def leaks(expansion: str, answers: Sequence[str]) -> bool:
    """The expansion contains an answer string, matched as DPR matches passages."""
    # Imported here: the corpus package brings its readers, which a plain table of measures does not need.
    from aqe.corpus.judge import contains_answer

    return bool(answers) and contains_answer(expansion, answers)


def cut(expansion: str, count: int, distinct: bool = False) -> str:
    """The first `count` words (parted by blanks), without the punctuation that the cut leaves at the end.

    With `distinct` repeated words are left out before they are counted. An expansion that is not longer is returned as
    it is, blanks around it stripped.
    """
    if distinct:
        expansion = distinct_words(expansion)
    parts = expansion.split()
    if len(parts) <= count:
        return expansion.strip()
    return " ".join(parts[:count]).rstrip(_TRAILING)


@dataclass(frozen=True)
class Diagnosis:
    """Shares are fractions of the expansions; None where nothing could be counted (no expansion, no answers).

    A system without expansions searches the query alone: its leakage share is that of the queries that hold an answer.
    """

    empty_share: float | None
    copied_share: float | None
    repeating_share: float | None
    """Of those that say a word again."""
    mean_words: float | None
    leakage_share: float | None
    leaked: list[bool] | None
    """Per expansion; None where there are none, or no query has answers."""


def diagnose(
    queries: Sequence[str], expansions: Sequence[str] | None, answers: Sequence[Sequence[str]] | None = None
) -> Diagnosis:
    """Count what the expansions of `queries` are like; `answers` are those of each query.

    The leakage share is over the queries that have answers.
    """
    leaked = None
    judged = sum(map(bool, answers or ()))
    if answers is not None and judged:
        leaked = [leaks(t, a) for t, a in zip(queries if expansions is None else expansions, answers, strict=True)]
    share = None if leaked is None else sum(leaked) / judged
    if not expansions:
        return Diagnosis(None, None, None, None, share, None)
    total = len(expansions)
    return Diagnosis(
        empty_share=sum(map(is_empty, expansions)) / total,
        copied_share=sum(is_copied(q, e) for q, e in zip(queries, expansions, strict=True)) / total,
        repeating_share=sum(repeats(e) > 0 for e in expansions) / total,
        mean_words=sum(len(words(e)) for e in expansions) / total,
        leakage_share=share,
        leaked=leaked,
    )
