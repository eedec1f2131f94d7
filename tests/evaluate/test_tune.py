"""What is tuned on dev: the grid grows at its edges, chance changes nothing, and a setting is used where it is chosen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe.artifact import Artifact, write_parquet
from aqe.config.data import IndexConfig
from aqe.config.evaluate import EvaluateConfig
from aqe.config.rank import RankConfig
from aqe.evaluate.grid import Ladder, Point, Values, climb, name
from aqe.evaluate.tune import LADDERS, decide, tune_bm25
from aqe.rank.retriever import Retriever
from aqe.records import JUDGED, table
from aqe.run import Run
from tests.impacts.test_gold import build
from tests.tools.bm25_oracle import bm25, gold

X = Ladder("x", (1, 2, 4, 8, 16), 1, 2)
Y = Ladder("y", (0.0, 0.5, 1.0), 0, 1)


@given(st.permutations(range(15)))
def test_the_best_point_of_a_grid_lies_inside_it_or_at_a_ladders_end(order: list[int]) -> None:
    points: list[Point] = [(x, y) for x in X.steps for y in Y.steps]
    worth = dict(zip(points, order, strict=True))
    asked: list[Point] = []

    def ask(points: Sequence[Point]) -> Values:
        asked.extend(points)
        return {point: np.array([float(worth[point])]) for point in points}

    known = climb((X, Y), ask)
    assert len(asked) == len(set(asked)) and set(known) == set(asked)
    best = max(known, key=lambda point: worth[point])
    for axis, ladder in enumerate((X, Y)):
        tried = sorted({point[axis] for point in known})
        if best[axis] == tried[0]:
            assert tried[0] == ladder.steps[0]
        if best[axis] == tried[-1]:
            assert tried[-1] == ladder.steps[-1]


def test_a_point_beside_the_grid_is_asked_too() -> None:
    known = climb((X, Y), lambda points: {point: np.array([point[0] == 3.0]) * 1.0 for point in points}, [(3.0, 0.3)])
    assert (3.0, 0.3) in known and name((X, Y), (3.0, 0.3)) == "x 3, y 0.3"


CONFIG = EvaluateConfig(bootstrap=500)
A, B = (0.9, 0.4), (0.4, 0.2)


def test_the_configured_setting_stays_unless_another_is_surely_better() -> None:
    draw = np.random.default_rng(0)
    values = draw.uniform(0, 1, 1000)
    chance = draw.normal(0, 0.3, 1000)
    noise = decide(A, {A: values, B: values + chance - chance.mean() + 0.001}, CONFIG)
    assert noise.chosen == A and noise.gain is not None and noise.gain.low <= 0 < noise.gain.value
    assert noise.why.startswith("k1 0.9, b 0.4 stays: k1 0.4, b 0.2")
    better = decide(A, {A: values, B: values + draw.normal(0.05, 0.1, 1000)}, CONFIG)
    assert better.chosen == B and better.gain is not None and better.gain.low > 0
    assert better.as_dict()["chosen"] == "k1 0.4, b 0.2" and set(better.as_dict()["dev_mrr"]) == {
        "k1 0.4, b 0.2",
        "k1 0.9, b 0.4",
    }
    assert decide(A, {A: values, B: values - 0.1}, CONFIG).chosen == A


#: Long passages that name the wanted word often, short ones that name it once: length is what tells them apart.
PASSAGES = {
    f"{kind}{i}": [f"word{i}"] * (2 if kind == "long" else 1) + ["filler"] * (64 if kind == "long" else 2)
    for i in range(20)
    for kind in ("long", "short")
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, lambda line: None)


def judged_by(run: Run, kind: str) -> Artifact:
    def fill(out: Path) -> dict[str, int]:
        rows = [{"qid": f"q{i}", "text": f"word{i}", "relevant": [f"{kind}{i}"], "grades": [1]} for i in range(20)]
        write_parquet(table(rows, JUDGED), out / "queries.parquet", 4)
        return {}

    return run.make("judge_queries", config={"split": "dev", "kind": kind}, inputs={}, build=fill)


def test_bm25_is_tuned_by_the_ranks_that_it_gives(ray_cluster: None, run: Run) -> None:
    def fill(out: Path) -> dict[str, int]:
        build(out, PASSAGES)
        return {}

    retriever = Retriever(run.make("build_impacts", config={}, inputs={}, build=fill), RankConfig(), IndexConfig())
    config = EvaluateConfig(bootstrap=200, tune_queries=20)
    judged = judged_by(run, "long")
    tuned = tune_bm25(run, retriever, config, judged=judged)
    for (k1, b), mrr in tuned.mrr.items():
        ranks = [gold(bm25(PASSAGES, f"word{i}", k1, b), [f"long{i}"])[1] for i in range(20)]
        assert mrr == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert tuned.mrr[tuned.chosen] == max(tuned.mrr.values()) == 1.0 and tuned.chosen != tuned.configured == (0.9, 0.4)
    assert tuned.gain is not None and tuned.gain.low > 0
    used = retriever.at(*tuned.chosen)
    assert (used.bm25.k1, used.bm25.b) == tuned.chosen and used.settings() != retriever.settings()
    # Again it is read, not made.
    assert tune_bm25(run, retriever, config, judged=judged) == tuned


def test_few_dev_queries_choose_nothing(run: Run) -> None:
    retriever = Retriever(judged_by(run, "short"), RankConfig(), IndexConfig(k1=1.2, b=0.75))
    for queries, why in ((1000, "20 dev queries are fewer than evaluate.tune_queries"), (0, "tune_queries is 0")):
        tuned = tune_bm25(run, retriever, EvaluateConfig(tune_queries=queries), judged=judged_by(run, "short"))
        assert tuned.chosen == tuned.configured == (1.2, 0.75) and why in tuned.why and not tuned.mrr


def test_the_ladders_hold_lucenes_and_anserinis_defaults() -> None:
    assert 0.9 in LADDERS[0].tried and 0.4 in LADDERS[1].tried
