"""Measures from exact ranks, run files, and their agreement with ir-measures."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqe import records
from aqe.config.evaluate import EvaluateConfig
from aqe.errors import InputError
from aqe.evaluate.compare import System, evaluate
from aqe.evaluate.expansions import cut, diagnose, is_copied, is_empty
from aqe.evaluate.measures import MEASURES, ndcg_at_10, per_query, reciprocal_rank, shown_ranks
from aqe.evaluate.runs import strict_scores, write_qrels, write_run
from aqe.ranker import Hit
from tests.impacts.test_gold import build
from tests.tools.trec import read_run_measures

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.25, 7.250001, 16777216.0]), max_size=30).map(
    lambda s: sorted(s, reverse=True)
)


def test_measures_by_hand() -> None:
    ranks, found = np.array([1, 4, 20, 101], dtype=np.int32), np.ones(4, bool)
    values = per_query(ranks, found, np.array([1.0, 0.5, 0.0, 0.0]))
    assert list(values) == list(MEASURES)
    assert values["top_1"].tolist() == [1, 0, 0, 0]
    assert values["top_5"].tolist() == [1, 1, 0, 0]
    assert values["top_20"].tolist() == [1, 1, 1, 0]
    assert values["top_100"].tolist() == [1, 1, 1, 0]
    assert values["mrr"].tolist() == [1, 0.25, 0.05, 1 / 101]
    assert values["rr_100"].tolist() == [1, 0.25, 0.05, 0]
    assert values["ndcg_10"].tolist() == [1, 0.5, 0, 0]


@given(st.lists(st.integers(1, 21_000_000), min_size=1, max_size=40))
def test_measures_against_a_slow_reference(ranks: list[int]) -> None:
    values = per_query(np.array(ranks, dtype=np.int32), np.ones(len(ranks), bool), np.zeros(len(ranks)))
    for i, rank in enumerate(ranks):
        first_hundred = [position == rank for position in range(1, 101)]
        for k in (1, 5, 20, 100):
            assert values[f"top_{k}"][i] == any(first_hundred[:k])
        assert values["mrr"][i] == 1 / rank
        assert values["rr_100"][i] == (1 / rank if any(first_hundred) else 0)


def test_what_is_not_found_is_no_hit_however_small_the_corpus() -> None:
    # Three passages: what is not found has the rank 4.
    values = per_query(np.array([4, 4, 1]), np.array([False, True, True]), np.zeros(3))
    for measure in ("top_5", "top_20", "top_100"):
        assert values[measure].tolist() == [0, 1, 1]
    assert values["mrr"].tolist() == values["rr_100"].tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("ranks", [[0, 3], [-1, 2]])
def test_a_query_without_a_rank_is_refused(ranks: list[int]) -> None:
    with pytest.raises(InputError, match="ranks start at 1"):
        per_query(np.array(ranks), np.ones(2, bool), np.zeros(2))


@given(SCORES)
def test_strict_scores_fall_and_keep_what_already_falls(scores: list[float]) -> None:
    strict = strict_scores(scores)
    assert strict.dtype == np.float32
    assert (np.diff(strict) < 0).all()
    assert np.allclose(strict, np.array(scores, dtype=np.float32), rtol=1e-5, atol=1e-5)
    if len(set(scores)) == len(scores):
        assert strict.tolist() == np.array(scores, dtype=np.float32).tolist()


def test_strict_scores_refuses_what_cannot_be_ordered() -> None:
    with pytest.raises(InputError, match="finite"):
        strict_scores([1.0, float("nan")])


WORDS = st.sampled_from("abcdefgh")
#: A word that no passage has is as likely as any other: many queries match nothing.
ASKED = st.lists(st.sampled_from("abzyxwvu"), max_size=3)
Query = tuple[list[str], frozenset[int]]
QUERY = st.tuples(ASKED, st.frozensets(st.integers(0, 11), min_size=1, max_size=4))


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.lists(WORDS, min_size=1, max_size=6), min_size=1, max_size=12),
    asked=st.lists(QUERY, min_size=1, max_size=8),
    depth=st.integers(1, 12),
)
def test_the_reports_measures_are_those_of_the_run_file(
    bodies: list[list[str]], asked: list[Query], depth: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    docids = [f"{(5 * i) % 12:03d}" for i in range(len(bodies))]
    ranker = build(folder / "index", dict(zip(docids, bodies, strict=True)), min(2, len(bodies)))
    relevant = [sorted({docids[i % len(docids)] for i in places}) for _, places in asked]
    qids = [f"q{n}" for n in range(len(asked))]
    qrels = records.table(
        [
            {"qid": qid, "docid": docid, "relevance": 1}
            for qid, own in zip(qids, relevant, strict=True)
            for docid in own
        ],
        records.QRELS,
    )
    texts = [" ".join(words) for words, _ in asked]
    hits = {qid: ranker.search(text, 100) for qid, text in zip(qids, texts, strict=True)}
    golds = [ranker.gold_ranks([text], own)[0] for text, own in zip(texts, relevant, strict=True)]
    ranks, found = np.array([g.rank for g in golds], np.int32), np.array([g.found for g in golds])
    assert (ranks[~found] == len(bodies) + 1).all() and (ranks[found] <= len(bodies)).all()
    queries = records.table([{"qid": q, "text": t} for q, t in zip(qids, texts, strict=True)], records.QUERIES)
    system = System("bm25", "BM25", ranks, found, ndcg_at_10(hits, qrels, qids))
    measured = evaluate(queries, [system], EvaluateConfig(bootstrap=100))["systems"]["bm25"]
    write_run(folder / "run.txt", hits, "tag")
    write_qrels(folder / "qrels.txt", qrels)
    # No list here is cut at 100: RR of the file is the uncut MRR.
    names = {
        **{f"top_{k}": f"Success@{k}" for k in (1, 5, 20, 100)},
        "mrr": "RR",
        "rr_100": "RR@100",
        "ndcg_10": "nDCG@10",
    }
    read = read_run_measures(folder / "run.txt", folder / "qrels.txt", names.values())
    for key, name in names.items():
        assert sorted(read[name]) == qids
        assert measured[key]["value"] == pytest.approx(float(np.mean([*read[name].values()])), abs=1e-9), name
    write_run(folder / "cut.txt", hits, "tag", depth)
    cut_at_depth = read_run_measures(folder / "cut.txt", folder / "qrels.txt", ["RR"])["RR"]
    values = reciprocal_rank(shown_ranks(ranks, found), depth)
    assert [cut_at_depth[qid] for qid in qids] == pytest.approx(values.tolist())


def test_a_long_tie_is_read_in_the_order_of_docids(tmp_path_factory: pytest.TempPathFactory) -> None:
    # trec_eval alone would put the largest docid of a tie first.
    folder = tmp_path_factory.mktemp("tie")
    hits = {"q": [Hit(f"d{i:03d}", 0.1) for i in range(150)]}
    write_run(folder / "run", hits, "t")
    lines = (folder / "run").read_text().splitlines()
    assert len(lines) == 100
    assert lines[0].split()[:4] == ["q", "Q0", "d000", "1"]
    for rank in (1, 2, 57, 100):
        write_qrels(
            folder / "qrels", records.table([{"qid": "q", "docid": f"d{rank - 1:03d}", "relevance": 1}], records.QRELS)
        )
        read = read_run_measures(folder / "run", folder / "qrels", ["RR@100", "RR"])
        assert read["RR@100"]["q"] == pytest.approx(1 / rank)
        assert read["RR"]["q"] == pytest.approx(1 / rank)


def test_ndcg_with_several_relevant_passages_by_hand() -> None:
    qrels = records.table(
        [{"qid": "q", "docid": d, "relevance": 1} for d in ("a", "c", "far")]
        + [{"qid": "none", "docid": "a", "relevance": 1}],
        records.QRELS,
    )
    hits = {"q": [Hit("a", 2.0), Hit("b", 2.0), Hit("c", 1.0)]}
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert ndcg_at_10(hits, qrels, ["none", "q"]).tolist() == pytest.approx([0, (1 + 1 / 2) / ideal])
    with pytest.raises(InputError, match="no judgement"):
        ndcg_at_10(hits, qrels, ["q", "other"])


def test_ids_with_blanks_stay_one_field(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("ids") / "run"
    write_run(path, {"q 1": [Hit("a\tb", 1.0)]}, "my tag")
    assert path.read_text() == "q%201 Q0 a%09b 1 1 my%20tag\n"
    assert next(iter(ir_measures.read_trec_run(str(path)))).doc_id == "a%09b"
    with pytest.raises(InputError, match="empty"):
        write_run(path, {"": [Hit("a", 1.0)]}, "t")


def test_empty_and_copied_expansions() -> None:
    assert is_empty("") and is_empty(" ?! … ") and not is_empty("a")
    assert is_copied("What is a Red fox?", "fox, red: WHAT")
    assert not is_copied("What is a red fox?", "red foxes")
    assert not is_copied("What is a red fox?", " . ")
    found = diagnose(["a b", "c d", "e"], ["", "d c", "f g h"])
    assert (found.empty_share, found.copied_share, found.mean_words) == pytest.approx((1 / 3, 1 / 3, 5 / 3))
    assert found.leakage_share is None and found.leaked is None
    assert diagnose([], []).empty_share is None and diagnose(["a"], None).empty_share is None


def test_leakage_counts_the_queries_that_have_answers() -> None:
    answers = [["café"], ["paris"], []]
    found = diagnose(["q"] * 3, ["the CAFÉ, Paris", "nothing", "Paris"], answers)
    assert found.leaked == [True, False, False]
    assert found.leakage_share == 0.5
    # Without expansions it is the query itself that may hold an answer.
    plain = diagnose(["in Paris", "where is Paris?", "Paris"], None, answers)
    assert (plain.leakage_share, plain.leaked, plain.empty_share) == (0.5, None, None)
    assert diagnose(["Paris"], None, [[]]).leakage_share is None


@pytest.mark.parametrize(
    ("text", "count", "wanted"),
    [
        ("one, two, three four", 2, "one, two"),
        ("one two", 2, "one two"),
        (" the U.S. ", 2, "the U.S."),
        ("", 3, ""),
        ("a (b) c", 2, "a (b)"),
        ("red; - blue", 2, "red"),
    ],
)
def test_cut(text: str, count: int, wanted: str) -> None:
    assert cut(text, count) == wanted


@given(st.text(max_size=60), st.integers(1, 9))
def test_cut_keeps_a_prefix_of_the_words(text: str, count: int) -> None:
    kept = cut(text, count)
    assert len(kept.split()) <= count
    assert " ".join(text.split()).startswith(" ".join(kept.split()))
