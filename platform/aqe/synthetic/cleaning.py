"""What becomes of what a model wrote when it was asked for a query: a query, or the reason why it is none."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aqe.compose import clean
from aqe.config.sample import PASSAGE, PromptConfig
from aqe.config.sources import SPLITS
from aqe.config.splits import SharesConfig
from aqe.corpus.split import deal, near_duplicates, same_question
from aqe.synthetic.passages import words

#: Tokens of a query at most, as in InPars.
MAX_TOKENS = 64
#: Words of a query. What is shorter says too little, what is longer is an answer or a list.
QUERY_WORDS = range(3, 33)

#: What a model writes before a query where a prompt has no label at its end.
_LABEL = re.compile(r"^(?:(?:relevant|good|search)\s+)?(?:query|question)\s*\d*\s*:\s*", re.IGNORECASE)
#: In pairs around the whole query.
_QUOTES = ('""', "''", "“”", "‘’", "«»", "``", "**")

Draft = Mapping[str, Any]


def query_of(raw: str, expansion: str) -> str:
    """The first line that says something, without a label or quotes around it. May be empty.

    `expansion` is `raw` on one line, without what the model thought (records.SAMPLES).
    """
    # A model that thought first wrote lines that are no query.
    lines = raw.splitlines() if clean(raw) == expansion else [expansion]
    for line in map(clean, lines):
        query = _bare(_LABEL.sub("", _bare(line)))
        if query:
            return query
    return ""


def _bare(text: str) -> str:
    """Without pairs of quotes around it."""
    while len(text) > 1 and text[0] + text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return text


def flaw(query: str, finish_reason: str, prompt: PromptConfig) -> str | None:
    """Why a query is not kept, whatever the others are."""
    size = len(words(query))
    if not size:
        return "no text"
    if finish_reason == "length":
        return "did not end"
    if size < QUERY_WORDS.start:
        return f"fewer than {QUERY_WORDS.start} words"
    if size >= QUERY_WORDS.stop:
        return f"more than {QUERY_WORDS.stop - 1} words"
    around = (part for text in (prompt.template, prompt.system or "") for part in text.split(PASSAGE))
    if any(same_question(query) in same_question(part) for part in around):
        return "copied from the prompt"
    return None


def split_queries(drafts: Sequence[Draft], shares: SharesConfig | None) -> tuple[list[Draft], list[tuple[Draft, str]]]:
    """Queries with the split of each as their `key`, and those that repeat another with the reason.

    `shares` deal them out where they are given. Elsewhere each has its split, and what says nearly the same as a query
    of a later one (train < dev < test) is taken out. Of equal queries of a split the first is kept.
    """
    if shares is not None:
        dealt = deal([draft["text"] for draft in drafts], shares)
        drafts = [{**draft, "key": split} for draft, split in zip(drafts, dealt, strict=True)]
    groups = near_duplicates([draft["text"] for draft in drafts])
    last: dict[int, int] = {}
    for group, draft in zip(groups, drafts, strict=True):
        last[group] = max(last.get(group, 0), SPLITS.index(draft["key"]))
    kept: list[Draft] = []
    aside: list[tuple[Draft, str]] = []
    seen: set[str] = set()
    for group, draft in zip(groups, drafts, strict=True):
        question = same_question(draft["text"])
        if draft["key"] != SPLITS[last[group]]:
            aside.append((draft, f"says nearly the same as one of {SPLITS[last[group]]}"))
        elif question in seen:
            aside.append((draft, "another passage has the same query"))
        else:
            seen.add(question)
            kept.append(draft)
    return kept, aside


def training_flaw(rank: int, score: float, depth: int) -> str | None:
    """Why a training query teaches nothing: from the rank of its own passage for plain BM25."""
    if score == 0:
        return "BM25 does not find its passage"
    if rank == 1:
        return "BM25 finds its passage first already"
    if rank > depth:
        return f"BM25 finds its passage beyond rank {depth}"
    return None
