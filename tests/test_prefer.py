"""Preference construction: who is chosen, who is rejected, and when there is nothing to prefer."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe.config.rank import PreferConfig
from aqe.prefer.candidates import Candidate, Judged, join
from aqe.prefer.diversity import collapse_warning, distinct_n, diversity, pairwise_cosine
from aqe.prefer.pairs import dpo_rows
from aqe.prefer.reward import REWARDS
from aqe.prefer.select import rsft_row
from aqe.prefer.stage import build_preferences
from aqe.rank.stage import PLAIN
from aqe.records import DPO, RANKS, RSFT, SAMPLES, table


def judged(*candidates: tuple[int, float, str, bool], plain: int = 10) -> Judged:
    made = tuple(Candidate(i, t, t.strip(), f, lp, rank) for i, (rank, lp, t, f) in enumerate(candidates))
    return Judged("q", "prompt", plain, made)


def test_best_against_worst() -> None:
    row = dpo_rows(judged((5, -1, " a", True), (2, -1, " b", True), (90, -1, " c", False)), PreferConfig())
    assert [(r["chosen"], r["rejected"], r["chosen_rank"], r["rejected_rank"]) for r in row] == [(" b", " c", 2, 90)]
    assert (row[0]["chosen_finished"], row[0]["rejected_finished"]) == (True, False)


def test_ties_go_to_the_likelier_then_the_earlier() -> None:
    case = judged(
        (2, -3, " a", True), (2, -1, " b", True), (9, -5, " c", True), (9, -2, " d", True), (9, -2, " e", True)
    )
    assert dpo_rows(case, PreferConfig())[0]["chosen"] == " b"
    assert dpo_rows(case, PreferConfig())[0]["rejected"] == " d"


def test_all_alike_gives_no_pair_but_a_target() -> None:
    case = judged((7, -2, " a", True), (7, -1, " b", True))
    assert dpo_rows(case, PreferConfig()) == []
    row = rsft_row(case, PreferConfig())
    assert row is not None
    assert row["completion"] == " b"


def test_include_plain_lets_silence_win() -> None:
    case = judged((50, -1, " a", True), (30, -1, " b", True), plain=3)
    samples = table(
        [
            {"unit_id": "u", "qid": "q", "sample_idx": c.sample_idx, "raw": c.raw, "expansion": c.expansion,
             "finish_reason": "stop", "num_tokens": 2, "logprob": -2.0, "duplicate": False}
            for c in case.candidates
        ],
        SAMPLES,
    )  # fmt: skip
    ranks = table(
        [
            {"qid": "q", "sample_idx": i, "gold_docid": "d", "gold_rank": r, "score": 1.0}
            for i, r in ((PLAIN, 3), (0, 50), (1, 30))
        ],
        RANKS,
    )
    config = PreferConfig(include_plain=True)
    (one,) = join({"q": "prompt"}, samples, ranks, config)
    (row,) = dpo_rows(one, config)
    assert (row["chosen"], row["chosen_finished"], row["rejected"]) == ("", True, " a")
    assert next(iter(join({"q": "prompt"}, samples, ranks, PreferConfig()))).candidates == case.candidates


@pytest.mark.parametrize(
    ("config", "pairs"),
    [
        ({}, 1),
        ({"pairs_per_query": 2}, 2),
        ({"pairs_per_query": 9}, 2),
        ({"min_margin": 4.0}, 1),
        ({"min_margin": 7.0}, 0),
        ({"reward": "reciprocal_rank", "min_margin": 0.9}, 1),
        ({"reward": "reciprocal_rank", "min_margin": 1.0}, 0),
        ({"only_if_better_than_plain": True}, 1),
    ],
)
def test_options(config: dict[str, Any], pairs: int) -> None:
    case = judged((1, -1, " a", True), (4, -1, " b", True), (8, -1, " c", True), (64, -1, " d", True))
    options = PreferConfig(**config)
    assert len(dpo_rows(replace(case, reward=REWARDS[options.reward]), options)) == pairs


def test_only_if_better_than_plain_leaves_the_query_out() -> None:
    case = judged((10, -1, " a", True), (20, -1, " b", True), plain=10)
    assert dpo_rows(case, PreferConfig(only_if_better_than_plain=True)) == []
    assert rsft_row(case, PreferConfig(only_if_better_than_plain=True)) is None


def test_rsft_only_with_pair_leaves_out_queries_whose_candidates_rank_alike() -> None:
    alike = judged((1, -1, " a", True), (1, -2, " b", True), plain=1)
    apart = judged((1, -1, " a", True), (2, -2, " b", True), plain=1)
    assert rsft_row(alike, PreferConfig())["completion"] == " a"  # type: ignore[index]
    assert rsft_row(alike, PreferConfig(rsft_only_with_pair=True)) is None
    assert rsft_row(apart, PreferConfig(rsft_only_with_pair=True)) == rsft_row(apart, PreferConfig())


def test_ndcg_orders_and_measures_pairs() -> None:
    made = (
        Candidate(0, " a", "a", True, -1, 1, 0.4),
        Candidate(1, " b", "b", True, -1, 3, 0.9),
        Candidate(2, " c", "c", True, -1, 80, 0.0),
        Candidate(3, " d", "d", True, -1, 20, 0.0),
    )
    case = Judged("q", "prompt", 2, made, REWARDS["ndcg"], 0.5)
    (row,) = dpo_rows(case, PreferConfig(reward="ndcg", min_margin=0.9))
    assert (row["chosen"], row["rejected"]) == (" b", " c")
    assert dpo_rows(case, PreferConfig(reward="ndcg", min_margin=0.91)) == []
    assert rsft_row(case, PreferConfig(reward="ndcg"))["completion"] == " b"  # type: ignore[index]
    # Below the cut all are worth the same: no pair, whatever their ranks.
    below = Judged("q", "prompt", 2, made[2:], REWARDS["ndcg"], 0.0)
    assert dpo_rows(below, PreferConfig(reward="ndcg")) == []


def test_truncated_and_empty_candidates() -> None:
    case = judged((1, -1, " cut", False), (2, -1, " ", True), (3, -1, " c", True), (9, -1, " d", True))
    assert rsft_row(case, PreferConfig())["completion"] == " cut"  # type: ignore[index]
    assert rsft_row(case, PreferConfig(allow_truncated=False))["completion"] == " c"  # type: ignore[index]
    assert rsft_row(case, PreferConfig(allow_truncated=False, allow_empty=True))["completion"] == " "  # type: ignore[index]


RANK = st.integers(1, 40)


@given(
    st.lists(st.tuples(RANK, st.floats(-9, 0), st.text("ab ", max_size=3), st.booleans()), min_size=1, max_size=9),
    st.integers(1, 4),
    st.floats(0, 4),
    st.booleans(),
    st.booleans(),
    RANK,
)
def test_pairs_against_a_slow_reference(
    drawn: list[tuple[int, float, str, bool]], pairs: int, margin: float, truncated: bool, better: bool, plain: int
) -> None:
    case = judged(*drawn, plain=plain)
    config = PreferConfig(
        pairs_per_query=pairs, min_margin=margin, allow_truncated=truncated, only_if_better_than_plain=better
    )
    good = [c for c in case.candidates if c.expansion and (c.finished or truncated)]
    if better and good and min(c.rank for c in good) >= plain:
        good = []
    expected = []
    bad = list(case.candidates)
    for _ in range(pairs):
        if not good or not bad:
            break
        best = min(good, key=lambda c: (c.rank, -c.logprob_per_token, c.sample_idx))
        worst = min(bad, key=lambda c: (-c.rank, -c.logprob_per_token, c.sample_idx))
        if best.rank >= worst.rank or math.log2(worst.rank) - math.log2(best.rank) < margin:
            break
        expected.append((best.raw, worst.raw, best.rank, worst.rank))
        good = [c for c in good if c.raw != best.raw]
        bad = [c for c in bad if c.raw != worst.raw]
    rows = dpo_rows(case, config)
    assert [(r["chosen"], r["rejected"], r["chosen_rank"], r["rejected_rank"]) for r in rows] == expected


def test_stage_writes_the_contract(tmp_path: Path) -> None:
    samples, ranks = [], []
    for q, plain in (("q1", 5), ("q2", 1)):
        ranks.append({"qid": q, "sample_idx": PLAIN, "gold_docid": "d", "gold_rank": plain, "score": 1.0})
        for i in range(3):
            samples.append(
                {"unit_id": "u", "qid": q, "sample_idx": i, "raw": f" w{i}", "expansion": f"w{i}", "finish_reason": "stop",
                 "num_tokens": 2, "logprob": -1.0, "duplicate": False}
            )  # fmt: skip
            ranks.append(
                {"qid": q, "sample_idx": i, "gold_docid": "d", "gold_rank": 4 + i if q == "q1" else 7, "score": 1.0}
            )
    said: list[str] = []
    stats = build_preferences(
        tmp_path,
        {"q2": "p2", "q1": "p1", "absent": "p"},
        table(samples, SAMPLES),
        table(ranks, RANKS),
        PreferConfig(),
        said.append,
    )
    rsft, dpo = pq.read_table(tmp_path / "rsft.parquet"), pq.read_table(tmp_path / "dpo.parquet")
    assert rsft.schema.equals(RSFT)
    assert dpo.schema.equals(DPO)
    assert rsft["qid"].to_pylist() == ["q2", "q1"]
    assert dpo.to_pylist()[0] | {} == {
        "qid": "q1", "prompt": "p1", "chosen": " w0", "rejected": " w2", "chosen_finished": True, "rejected_finished": True,
        "chosen_rank": 4, "rejected_rank": 6,
    }  # fmt: skip
    assert stats["queries_without_candidates"] == 1
    assert (stats["queries"], stats["queries_with_pair"], stats["best_beats_plain"]) == (2, 1, 0.5)
    assert stats["plain_mrr"] == pytest.approx((1 / 5 + 1) / 2, abs=1e-5)
    assert "1 of 2 queries gave a pair" in said[0]


@given(st.lists(st.text("ab c", max_size=8), min_size=2, max_size=6))
def test_cosine_against_all_pairs(texts: list[str]) -> None:
    def cosine(x: str, y: str) -> float:
        a, b = x.split(), y.split()
        dot = sum(a.count(w) * b.count(w) for w in set(a))
        return (
            dot / math.sqrt(sum(a.count(w) ** 2 for w in set(a)) * sum(b.count(w) ** 2 for w in set(b))) if dot else 0.0
        )

    pairs = [cosine(texts[i], texts[j]) for i in range(len(texts)) for j in range(i)]
    assert pairwise_cosine(texts) == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)


def test_collapse_is_seen() -> None:
    alike = diversity({"q": ["the same words"] * 9})
    assert alike["mean_pairwise_cosine"] == pytest.approx(1.0)
    assert collapse_warning(alike) is not None
    apart = diversity({"q": ["one", "two", "three four"]})
    assert apart["mean_pairwise_cosine"] == 0
    assert collapse_warning(apart) is None
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    silent = diversity({"q": ["", "", ""]})
    assert silent["distinct_1"] is None
    assert "no candidate holds a word" in str(collapse_warning(silent))
    json.dumps(silent, allow_nan=False)


def test_several_pairs_choose_no_text_twice() -> None:
    case = judged(
        (1, -1, " a", True), (1, -2, " a", True), (2, -1, " b", True), (9, -1, " c", True), (9, -3, " c", True)
    )
    rows = dpo_rows(case, PreferConfig(pairs_per_query=3))
    assert [(r["chosen"], r["rejected"]) for r in rows] == [(" a", " c")]
