"""Bootstrap intervals and the randomisation test."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe.evaluate.significance import bootstrap_means, by_place, halvings, interval, sign_flip_p, wins_losses_ties


def test_bootstrap_draws_queries_with_replacement() -> None:
    # Against the obvious way, for the same draws.
    values = np.random.default_rng(1).random((17, 3))
    got = bootstrap_means(values, 5, seed=3)
    drawn = np.random.default_rng(3).integers(0, 17, size=(5, 17))
    assert np.allclose(got, np.stack([values[row].mean(axis=0) for row in drawn]))


def test_bootstrap_is_the_same_again_and_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random((17, 3))
    whole = bootstrap_means(values, 50, seed=3)
    monkeypatch.setattr("aqe.evaluate.significance.BLOCK", 100)
    assert np.allclose(whole, bootstrap_means(values, 50, seed=3))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        values = 1 / rng.geometric(0.2, size=200)  # reciprocal ranks
        found = interval(values.mean(), bootstrap_means(values[:, None], 400, seed=trial)[:, 0], 0.95)
        covered += found.low <= TRUE_MEAN <= found.high
    assert 0.91 <= covered / 300 <= 0.985


TRUE_MEAN = float(np.sum(0.2 * 0.8 ** np.arange(2000) / np.arange(1, 2001)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_interval_holds_its_value(values: list[float]) -> None:
    array = np.array(values)[:, None]
    found = interval(float(array.mean()), bootstrap_means(array, 100, seed=0)[:, 0], 0.95)
    assert found.low <= found.value <= found.high


def test_p_value_is_that_of_all_flips() -> None:
    differences = np.array([0.5, 0.25, -0.25, 1.0, 0.0, 0.5])
    flips = np.array(list(itertools.product([-1, 1], repeat=6)))
    exact = np.mean(np.abs(flips @ differences) >= abs(differences.sum()))
    got = sign_flip_p(differences[:, None], 20_000, seed=0)[0]
    assert got == pytest.approx(exact, abs=0.015)


def test_p_values_are_uniform_under_the_hypothesis_and_tiny_under_an_effect() -> None:
    rng = np.random.default_rng(0)
    p = sign_flip_p(rng.normal(size=(100, 400)), 500, seed=1)
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.08)
    strong = sign_flip_p(rng.normal(1, 1, size=(100, 1)), 2000, seed=1)
    assert strong[0] == pytest.approx(1 / 2001)


def test_no_difference_gives_p_one() -> None:
    assert sign_flip_p(np.zeros((10, 2)), 100, seed=0).tolist() == [1, 1]
    assert sign_flip_p(np.array([[1.0], [-1.0]]), 100, seed=0).tolist() == [1]


def test_wins_losses_ties() -> None:
    got = wins_losses_ties(np.array([1, 5, 7, 2, np.inf, 3]), np.array([3, 5, 6, 9, np.inf, np.inf]))
    assert got == {"wins": 3, "losses": 1, "ties": 2}


SHOWN = st.one_of(st.integers(1, 130), st.integers(95, 10**6), st.just(np.inf))


@given(st.lists(st.tuples(SHOWN, SHOWN), min_size=1, max_size=30))
def test_a_query_is_won_where_the_better_of_its_ranks_lies(pairs: list[tuple[float, float]]) -> None:
    expected = {place: {"wins": 0, "losses": 0, "ties": 0} for place in ("first_10", "11_to_100", "beyond")}
    for own, other in pairs:
        place = "first_10" if min(own, other) <= 10 else "11_to_100" if min(own, other) <= 100 else "beyond"
        expected[place]["wins" if own < other else "losses" if own > other else "ties"] += 1
    shown = np.array(pairs, dtype=np.float64)
    assert by_place(shown[:, 0], shown[:, 1]) == expected
    total = wins_losses_ties(shown[:, 0], shown[:, 1])
    assert total == {key: sum(of_place[key] for of_place in expected.values()) for key in total}


def test_halvings() -> None:
    assert halvings(np.array([1, 8, 10]), np.array([4, 4, 10])) == pytest.approx((2 - 1 + 0) / 3)
    assert halvings(np.array([5, 100]), np.array([5, 50])) == pytest.approx(-0.5)
