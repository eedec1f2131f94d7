"""From what a model wrote to a query: its first line, of a query's length, said once, in one split."""

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe.compose import clean
from aqe.config.sample import PromptConfig
from aqe.config.sources import SPLITS
from aqe.config.splits import SharesConfig
from aqe.corpus.split import NEAR, same_question
from aqe.prompts import PROMPTS
from aqe.synthetic.cleaning import QUERY_WORDS, flaw, query_of, split_queries, training_flaw

PROMPT = PROMPTS["question_few_shot"]
SHARES = SharesConfig(train=0.5, dev=0.25, test=0.25)


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        (" where does the river  bend\n\nExample 5:", "where does the river bend"),
        ("\n\n \nwhere does it bend?", "where does it bend?"),
        ('"Where does the river bend?"', "Where does the river bend?"),
        ('Query: "where does it bend"\nAnswer: nowhere', "where does it bend"),
        ("Question 1: where does it bend", "where does it bend"),
        ('who said "no"', 'who said "no"'),
        ("who queries: and why", "who queries: and why"),
        ('""\n', ""),
        ("Query:", ""),
        (" \n", ""),
    ],
)
def test_a_query_is_the_first_line_that_says_something(raw: str, query: str) -> None:
    assert query_of(raw, clean(raw)) == query


def test_what_a_model_thought_is_no_query() -> None:
    assert query_of("<think>\nhm\n</think>\nwhere is it", "where is it") == "where is it"


@given(st.text(alphabet=st.sampled_from("ab: \n\r\t\"“”'?*`QueryQuestion\u2028é"), max_size=40))
def test_a_query_is_one_line_of_what_was_written_and_cleaned_again_the_same(raw: str) -> None:
    query = query_of(raw, clean(raw))
    assert query == clean(query)
    assert query in [clean(line)[i:j] for line in raw.splitlines() or [""] for i, j in _spans(clean(line))]
    assert query_of(query, query) == query


def _spans(line: str) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(line) + 1) for j in range(i, len(line) + 1)]


@given(st.integers(0, 60))
def test_queries_have_a_sensible_length(size: int) -> None:
    why = flaw(" ".join(["word"] * size), "stop", PROMPT)
    assert (why is None) == (size in QUERY_WORDS)
    assert why in (None, "no text", "fewer than 3 words", "more than 32 words")


def test_what_did_not_end_or_is_an_example_is_none() -> None:
    assert flaw("where does the river bend", "stop", PROMPT) is None
    assert flaw("where does the river bend", "length", PROMPT) == "did not end"
    assert flaw("Why does some bread taste sour?", "stop", PROMPT) == "copied from the prompt"
    chat = PromptConfig(name="x", chat=True, system="Write a short question.", template="{passage}")
    assert flaw("write a short question", "stop", chat) == "copied from the prompt"
    assert flaw("...!", "stop", PROMPT) == "no text"


def test_in_a_script_without_blanks_too() -> None:
    assert flaw("川はどこで曲がるか", "stop", PROMPT) is None
    assert flaw("川", "stop", PROMPT) == "fewer than 3 words"


_queries = st.lists(
    st.lists(st.sampled_from([f"w{i}" for i in range(9)]), min_size=1, max_size=14).map(" ".join), max_size=14
)


def drafts(texts: list[str], keys: list[str]) -> list[dict[str, Any]]:
    return [{"qid": str(i), "text": text, "key": key} for i, (text, key) in enumerate(zip(texts, keys, strict=True))]


def near(a: str, b: str) -> bool:
    one, other = frozenset(a.split()), frozenset(b.split())
    return len(one & other) >= NEAR * len(one | other)


@given(_queries, st.booleans(), st.data())
def test_none_is_a_copy_and_near_duplicates_stand_in_one_split(
    texts: list[str], rule: bool, data: st.DataObject
) -> None:
    keys: list[str] = ["all"] * len(texts) if rule else [data.draw(st.sampled_from(SPLITS)) for _ in texts]
    given_ = drafts(texts, keys)
    kept, aside = split_queries(given_, SHARES if rule else None)
    assert sorted(d["qid"] for d in [*kept, *(d for d, _ in aside)]) == sorted(d["qid"] for d in given_)
    assert len({same_question(d["text"]) for d in kept}) == len(kept)
    for a in kept:
        assert a["key"] in SPLITS and (rule or a["key"] == keys[int(a["qid"])])
        assert all(a["key"] == b["key"] for b in kept if near(a["text"], b["text"]))
    # Nothing is lost that something else does not say: each is there, or something near it is, over a chain.
    by_question = defaultdict(list)
    for d, why in aside:
        by_question[why].append(d)
    for d in by_question["another passage has the same query"]:
        assert any(same_question(d["text"]) == same_question(k["text"]) for k in kept)
    assert not rule or set(by_question) <= {"another passage has the same query"}
    assert bool(kept) == bool(texts)


def test_a_later_split_keeps_what_is_nearly_the_same() -> None:
    texts = ["how long is the river in all", "how long is the river, in all?", "how long is the river in all"]
    kept, aside = split_queries(drafts(texts, ["train", "test", "dev"]), None)
    assert [d["qid"] for d in kept] == ["1"]
    assert [(d["qid"], why) for d, why in aside] == [
        ("0", "says nearly the same as one of test"),
        ("2", "says nearly the same as one of test"),
    ]


@pytest.mark.parametrize(
    ("rank", "score", "why"),
    [
        (1, 3.0, "BM25 finds its passage first already"),
        (2, 3.0, None),
        (100, 0.1, None),
        (101, 0.1, "BM25 finds its passage beyond rank 100"),
        (41, 0.0, "BM25 does not find its passage"),
    ],
)
def test_a_training_query_teaches_something_where_bm25_finds_its_passage_late(
    rank: int, score: float, why: str | None
) -> None:
    assert training_flaw(rank, score, 100) == why
