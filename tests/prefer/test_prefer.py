"""Preference construction: who is chosen, who is rejected, and when there is nothing to prefer."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe.artifact import MANIFEST, Artifact, write_parquet
from aqe.base_model import LanguageModel
from aqe.config.rank import PreferConfig
from aqe.config.sample import PromptConfig
from aqe.errors import ArtifactError
from aqe.prefer.candidates import Candidate, Prompt, RankedQuery, ranked_query
from aqe.prefer.diversity import collapse_warning, distinct_n, diversity, diversity_counts, pairwise_cosine
from aqe.prefer.pairs import dpo_rows
from aqe.prefer.reward import REWARDS
from aqe.prefer.select import random_row, rsft_row
from aqe.prefer.stage import build_preferences, gather
from aqe.records import DPO, JUDGED, PLAIN, RANKS, RSFT, SAMPLES, table
from aqe.run import Run
from tests.tools.align import make_model, make_tokenizer

END = 99
PROMPT = Prompt("prompt", (7, 8), END)


#: The rank of what is not found: 1 + the number of passages.
NOT_FOUND = 1001


def candidate(i: int, raw: str, finished: bool, logprob: float, rank: int, ndcg: float = math.nan) -> Candidate:
    return Candidate(i, raw, (i, END), raw.strip(), finished, 2 * logprob, 2, rank, rank < NOT_FOUND, ndcg)


def plain_query(rank: int, ndcg: float = math.nan) -> Candidate:
    return Candidate(PLAIN, "", (END,), "", True, -math.inf, 0, rank, rank < NOT_FOUND, ndcg)


def ranked(*candidates: tuple[int, float, str, bool], plain: int = 10) -> RankedQuery:
    made = tuple(candidate(i, text, finished, lp, rank) for i, (rank, lp, text, finished) in enumerate(candidates))
    return RankedQuery("q", PROMPT, plain_query(plain), made)


def test_best_against_worst() -> None:
    row = dpo_rows(ranked((5, -1, " a", True), (2, -1, " b", True), (90, -1, " c", False)), PreferConfig())
    assert [(r["chosen"], r["rejected"], r["chosen_rank"], r["rejected_rank"]) for r in row] == [(" b", " c", 2, 90)]
    assert (row[0]["chosen_finished"], row[0]["rejected_finished"]) == (True, False)


def test_ties_go_to_the_likelier_then_the_earlier() -> None:
    case = ranked(
        (2, -3, " a", True), (2, -1, " b", True), (9, -5, " c", True), (9, -2, " d", True), (9, -2, " e", True)
    )
    assert dpo_rows(case, PreferConfig())[0]["chosen"] == " b"
    assert dpo_rows(case, PreferConfig())[0]["rejected"] == " d"


def test_all_alike_gives_no_pair_but_a_target() -> None:
    case = ranked((7, -2, " a", True), (7, -1, " b", True))
    assert dpo_rows(case, PreferConfig()) == []
    row = rsft_row(case, PreferConfig())
    assert row is not None
    assert row["completion"] == " b"


def test_include_plain_lets_silence_win() -> None:
    case = ranked((50, -1, " a", True), (30, -1, " b", True), plain=3)
    row = {
        "qid": "q",
        "query": "a query",
        "samples": [
            {
                "sample_idx": c.sample_idx,
                "raw": c.raw,
                "expansion": c.expansion,
                "finish_reason": "stop",
                "token_ids": list(c.ids),
                "stop_at": None,
                "num_tokens": 2,
                "logprob": -2.0,
            }
            for c in case.candidates
        ],
        "ranks": [
            {"sample_idx": i, "gold_rank": r, "score": 1.5, "ndcg": None} for i, r in ((PLAIN, 3), (0, 50), (1, 30))
        ],
    }
    config = PreferConfig(include_plain=True)
    (pair,) = dpo_rows(ranked_query(row, PROMPT, config), config)
    assert (pair["chosen"], pair["chosen_finished"], pair["rejected"]) == ("", True, " a")
    assert (pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]) == ((7, 8), (END,), (0, END))
    assert ranked_query(row, PROMPT, PreferConfig()).candidates == case.candidates


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
    case = ranked((1, -1, " a", True), (4, -1, " b", True), (8, -1, " c", True), (64, -1, " d", True))
    options = PreferConfig(**config)
    assert len(dpo_rows(replace(case, reward=REWARDS[options.reward]), options)) == pairs


def test_only_if_better_than_plain_leaves_the_query_out() -> None:
    case = ranked((10, -1, " a", True), (20, -1, " b", True), plain=10)
    assert dpo_rows(case, PreferConfig(only_if_better_than_plain=True)) == []
    assert rsft_row(case, PreferConfig(only_if_better_than_plain=True)) is None


def test_rsft_only_with_pair_leaves_out_queries_whose_candidates_rank_alike() -> None:
    alike = ranked((1, -1, " a", True), (1, -2, " b", True), plain=1)
    apart = ranked((1, -1, " a", True), (2, -2, " b", True), plain=1)
    assert rsft_row(alike, PreferConfig())["completion"] == " a"  # type: ignore[index]
    assert rsft_row(alike, PreferConfig(rsft_only_with_pair=True)) is None
    assert rsft_row(apart, PreferConfig(rsft_only_with_pair=True)) == rsft_row(apart, PreferConfig())


def test_ndcg_orders_and_measures_pairs() -> None:
    made = (
        candidate(0, " a", True, -1, 1, 0.4),
        candidate(1, " b", True, -1, 3, 0.9),
        candidate(2, " c", True, -1, 80, 0.0),
        candidate(3, " d", True, -1, 20, 0.0),
    )
    case = RankedQuery("q", PROMPT, plain_query(2, 0.5), made, REWARDS["ndcg"])
    (row,) = dpo_rows(case, PreferConfig(reward="ndcg", min_margin=0.9))
    assert (row["chosen"], row["rejected"]) == (" b", " c")
    assert dpo_rows(case, PreferConfig(reward="ndcg", min_margin=0.91)) == []
    assert rsft_row(case, PreferConfig(reward="ndcg"))["completion"] == " b"  # type: ignore[index]
    # Below the cut all are worth the same: no pair, whatever their ranks.
    below = RankedQuery("q", PROMPT, plain_query(2, 0.0), made[2:], REWARDS["ndcg"])
    assert dpo_rows(below, PreferConfig(reward="ndcg")) == []


@given(
    st.sampled_from(sorted(REWARDS)),
    st.lists(st.one_of(st.just(NOT_FOUND), st.integers(1, NOT_FOUND - 1)), min_size=1, max_size=6),
)
def test_what_is_not_found_is_the_worst_and_no_pair_is_made_of_two(reward: str, ranks: list[int]) -> None:
    def ndcg(rank: int) -> float:
        return 1 / math.log2(rank + 1) if rank <= 10 else 0.0

    made = tuple(candidate(i, f" {i}", True, -i, rank, ndcg(rank)) for i, rank in enumerate(ranks))
    case = RankedQuery("q", PROMPT, plain_query(NOT_FOUND, 0.0), made, REWARDS[reward])
    lost = [c for c in made if not c.found]
    assert len({case.value(c) for c in (*lost, case.plain)}) == 1
    assert all(case.value(c) >= case.value(case.plain) for c in made)
    if reward == "reciprocal_rank":
        assert case.value(case.plain) == 0
    rows = dpo_rows(case, PreferConfig(reward=reward, pairs_per_query=6))  # type: ignore[arg-type]
    assert all(row["chosen_rank"] < NOT_FOUND for row in rows)
    if lost:
        assert case.worst_first()[0] in lost
        if len(lost) == len(made):
            assert rows == []
            assert rsft_row(case, PreferConfig(reward=reward, only_if_better_than_plain=True)) is None  # type: ignore[arg-type]


def test_truncated_and_empty_candidates() -> None:
    case = ranked((1, -1, " cut", False), (2, -1, " ", True), (3, -1, " c", True), (9, -1, " d", True))
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
    case = ranked(*drawn, plain=plain)
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


def make_artifact(run: Run, stage: str, files: dict[str, pa.Table], **stats: int) -> Artifact:
    def build(out: Path) -> dict[str, int]:
        for name, data in files.items():
            write_parquet(data, out / f"{name}.parquet")
        return stats

    return run.make(stage, config={}, inputs={}, build=build)


def test_stage_writes_the_contract(ray_cluster: None, tmp_path: Path) -> None:
    samples: dict[str, list[dict[str, Any]]] = {"absent": []}
    ranks: dict[str, list[dict[str, Any]]] = {"absent": []}
    for q, plain in (("q1", 5), ("q2", 1)):
        samples[q] = [
            {"unit_id": "u", "qid": q, "sample_idx": i, "raw": f" w{i}", "expansion": f"w{i}", "finish_reason": "stop",
             "token_ids": [40 + i, 1, 2], "stop_at": 1 if i == 2 else None, "num_tokens": 3, "logprob": -1.0, "duplicate": False}
            for i in range(3)
        ]  # fmt: skip
        golds = [plain, *(4 + i if q == "q1" else NOT_FOUND for i in range(3))]
        ranks[q] = [
            {"qid": q, "sample_idx": i, "gold_docid": "d", "gold_rank": rank, "score": float(rank < NOT_FOUND)}
            for i, rank in enumerate(golds, PLAIN)
        ]
    said: list[str] = []
    run = Run(tmp_path, said.append)
    order = ("q2", "q1", "absent")
    queries = table([{"qid": q, "text": f"about {q}", "relevant": ["d"], "grades": [1]} for q in order], JUDGED)
    # Two queries to a file of samples, one to a file of ranks.
    one, two = (table([row for q in part for row in samples[q]], SAMPLES) for part in (order[:2], order[2:]))
    made = partial(
        build_preferences,
        run,
        PreferConfig(),
        prompt=PromptConfig(name="short", template="Q: {query}"),
        model=LanguageModel(make_model(tmp_path / "model"), "none", "none", None),
        judged=make_artifact(run, "judged", {"queries": queries}),
        samples=make_artifact(run, "samples", {"data/0": one, "data/1": two}, queries_per_unit=2, units=2),
        ranks=make_artifact(
            run,
            "ranks",
            {f"data/{i}": table(ranks[q], RANKS) for i, q in enumerate(order)},
            queries_per_unit=1,
            units=3,
            rows_in=2,
            dead=0,
        ),
    )
    artifact = made()
    rsft, dpo, stats = artifact.read("rsft"), artifact.read("dpo"), artifact.stats
    assert rsft.schema.equals(RSFT)
    assert dpo.schema.equals(DPO)
    assert rsft["qid"].to_pylist() == ["q2", "q1"]
    tokenizer = make_tokenizer()
    prompt = tokenizer("Q: about q1")["input_ids"]
    # As they were drawn; a stop text behind the first token ended the rejected one, and the model's own end is taught.
    ids = {"prompt_ids": prompt, "chosen_ids": [40, 1, 2], "rejected_ids": [42, tokenizer.eos_token_id]}
    assert dpo.to_pylist() == [{
        "qid": "q1", "prompt": "Q: about q1", "chosen": " w0", "rejected": " w2", "chosen_finished": True, "rejected_finished": True,
        "chosen_rank": 4, "rejected_rank": 6, **ids,
    }]  # fmt: skip
    assert rsft["completion_ids"].to_pylist()[1] == [40, 1, 2]
    assert not (artifact.path / "data").exists(), "the units' files are one now"
    assert stats["queries_without_candidates"] == 1
    assert (stats["queries"], stats["rsft_rows"], stats["dpo_pairs"], stats["queries_with_pair"]) == (2, 2, 1, 1)
    assert stats["best_beats_plain"] == 0.5
    assert stats["plain_mrr"] == pytest.approx((1 / 5 + 1) / 2, abs=1e-5)
    assert stats["candidate_mrr"] == pytest.approx(((1 / 4 + 1 / 5 + 1 / 6) / 3 + 0) / 2, abs=1e-5)
    assert stats["best_mrr"] == pytest.approx((1 / 4 + 0) / 2, abs=1e-5)
    assert (stats["mean_pairwise_cosine"], stats["distinct_1"]) == (0, 1)
    assert any("1 of 2 queries gave a pair" in line for line in said)
    # Killed at its very end, it is made again, and is the same.
    (artifact.path / MANIFEST).unlink()
    (artifact.path / "dpo.parquet").unlink()
    again = made()
    assert (again.read("rsft"), again.read("dpo")) == (rsft, dpo)


def test_a_unit_that_is_gone_is_not_left_out(tmp_path: Path) -> None:
    write_parquet(
        pa.table({"rsft": pa.array([], pa.struct(RSFT)), "dpo": pa.array([], pa.list_(pa.struct(DPO)))}),
        tmp_path / "data" / "0.parquet",
    )
    with pytest.raises(ArtifactError, match=r"1\.parquet does not exist"):
        gather(tmp_path, ["0", "1"])


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
    alike = diversity(diversity_counts(["the same words"] * 9))
    assert alike["mean_pairwise_cosine"] == pytest.approx(1.0)
    assert collapse_warning(alike) is not None
    apart = diversity(diversity_counts(["one", "two", "three four"]))
    assert apart["mean_pairwise_cosine"] == 0
    assert collapse_warning(apart) is None
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    silent = diversity(diversity_counts(["", "", ""]))
    assert silent["distinct_1"] is None
    assert "no candidate holds a word" in str(collapse_warning(silent))
    json.dumps(silent, allow_nan=False)


def test_several_pairs_choose_no_text_twice() -> None:
    case = ranked(
        (1, -1, " a", True), (1, -2, " a", True), (2, -1, " b", True), (9, -1, " c", True), (9, -3, " c", True)
    )
    rows = dpo_rows(case, PreferConfig(pairs_per_query=3))
    assert [(r["chosen"], r["rejected"]) for r in rows] == [(" a", " c")]


def of(*candidates: Candidate, depth: int | None = None, plain: int = 10) -> RankedQuery:
    return RankedQuery("q", PROMPT, plain_query(plain), candidates, depth=depth)


def test_of_equal_candidates_a_finished_one_is_chosen_then_one_that_repeats_nothing() -> None:
    looping = candidate(0, " great, great, great, great", False, -0.1, 3)
    said_twice = candidate(1, " great work, great", True, -0.2, 3)
    finished = candidate(2, " great", True, -2.0, 3)
    likelier = candidate(3, " large", True, -1.5, 3)
    cut = candidate(4, " great and large", False, -0.1, 3)
    worse = candidate(5, " small", True, -0.1, 90)
    case = of(looping, said_twice, finished, likelier, cut, worse)
    assert [c.sample_idx for c in case.best_first()] == [3, 2, 1, 4, 0, 5]
    row = rsft_row(case, PreferConfig())
    assert row is not None and row["completion"] == " large"
    # A better rank comes before all of it.
    better = replace(looping, rank=2)
    assert of(better, finished).best_first()[0] is better


def test_silence_comes_after_any_equal_that_says_something() -> None:
    cut = candidate(0, " great, great", False, -5.0, 10)
    case = of(cut, plain_query(10))
    assert case.best_first()[0] is cut
    assert of(replace(cut, rank=11), plain_query(10)).best_first()[0].sample_idx == PLAIN


def test_the_likeliest_as_a_whole_wins_not_the_likeliest_a_token() -> None:
    long = replace(candidate(0, " a b c d", True, -1.0, 3), logprob=-8.0, tokens=8)
    short = replace(candidate(1, " a", True, -1.0, 3), logprob=-4.0, tokens=2)
    assert long.logprob_per_token > short.logprob_per_token
    assert of(long, short).best_first()[0] is short


@given(
    st.lists(st.tuples(st.integers(1, NOT_FOUND), st.floats(-9, 0)), min_size=2, max_size=8),
    st.integers(1, 300),
    st.sampled_from(["rank", "reciprocal_rank"]),
)
def test_beyond_the_depth_all_ranks_are_worth_the_same(drawn: list[tuple[int, float]], depth: int, reward: str) -> None:
    made = [candidate(i, f" w{i}", True, logprob, rank) for i, (rank, logprob) in enumerate(drawn)]
    case = replace(of(*made, depth=depth), reward=REWARDS[reward])
    for a in made:
        for b in made:
            near = min(a.rank, depth + 1), min(b.rank, depth + 1)
            assert (case.value(a) > case.value(b)) == (near[0] < near[1])
    for pair in dpo_rows(case, PreferConfig(pairs_per_query=9)):
        assert pair["chosen_rank"] <= depth and pair["chosen_rank"] < pair["rejected_rank"]


def test_the_random_target_is_of_the_same_queries_and_any_candidate() -> None:
    drawn = set()
    for number in range(60):
        case = replace(of(*(candidate(i, f" w{i}", True, -1.0, 5 + i) for i in range(4))), qid=f"q{number}")
        row, best = random_row(case, PreferConfig()), rsft_row(case, PreferConfig())
        assert row is not None and best is not None and row == random_row(case, PreferConfig())
        assert (row["qid"], row["prompt_ids"]) == (best["qid"], best["prompt_ids"])
        drawn.add(row["completion"])
    assert drawn == {" w0", " w1", " w2", " w3"}
    silent = of(candidate(0, " ", True, -1.0, 5), candidate(1, " w", True, -1.0, 9))
    only = random_row(silent, PreferConfig())
    assert only is not None and only["completion"] == " w"
    nothing = of(candidate(0, " a", True, -1.0, 50), plain=3)
    assert random_row(nothing, PreferConfig(only_if_better_than_plain=True)) is None
