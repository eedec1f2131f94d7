"""The sentences that a run ends with: they say what was compared, how sure it is, and what to do next."""

import json
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aqe import records
from aqe.config.evaluate import EvaluateConfig
from aqe.evaluate.compare import System, evaluate
from aqe.evaluate.outcome import of_pair, of_part, outcome
from aqe.report.card import results_of, write_model_card
from aqe.report.closing import closing
from aqe.report.page import ReportContext, headlines, write_report
from aqe.report.verdict import Verdict, verdict
from tests.report.test_closing import make_report

CONFIG = EvaluateConfig(bootstrap=1_000)


def queries(count: int, sets: tuple[str, ...] = ("only",)) -> pa.Table:
    rows = [
        {"qid": f"q{i}", "text": f"query {i}", "answers": [], "positives": ["d"], "dataset": sets[i % len(sets)]}
        for i in range(count)
    ]
    return records.table(rows, records.QUERIES)


def system(name: str, ranks: Any, label: str = "", **more: Any) -> System:
    ranks = np.asarray(ranks, dtype=np.int32)
    expansions = None if name.startswith("bm25") else ["word"] * len(ranks)
    return System(name, label or f"label of {name}", ranks, np.ones(len(ranks), bool), 1 / ranks, expansions, **more)


def measure(count: int, ranks: Any, **more: Any) -> dict[str, Any]:
    """A model with these ranks against two controls; the better one has rank 2 everywhere."""
    three = [system("bm25", np.full(count, 5)), system("zero_shot", np.full(count, 2)), system("rsft_dpo", ranks)]
    return evaluate(queries(count), three, CONFIG) | {"split": "test", **more}


def mixed(count: int, better: float) -> Any:
    """Rank 1 for a share of the queries, rank 5 for the rest: 2 on average would be a share of 0.375."""
    return np.where(np.arange(count) < round(better * count), 1, 5)


def test_better() -> None:
    found = verdict(measure(400, mixed(400, 0.6)))
    assert found.outcome == "better"
    compared, shown, after = found.sentences
    assert compared == (
        "label of rsft_dpo was compared with 2 controls on 400 test queries; the best of them is “label of zero_shot” "
        "(MRR 50.0 points)."
    )
    assert shown.startswith("It is better than the best control: its MRR is 68.0 points, a difference of +18.0 (")
    assert "95% interval +1" in shown and "p < 0.002" in shown
    assert "evaluate.seeds=3" in after


def test_not_proven_says_how_many_queries_could_show_it() -> None:
    metrics = measure(800, mixed(800, 0.39))
    found = verdict(metrics)
    assert found.outcome == "not proven" and len(found.sentences) == 3
    assert "It is not proven to be better" in found.sentences[1] and "may be chance" in found.sentences[1]
    difference = metrics["differences"]["rsft_dpo_vs_zero_shot"]["mrr"]
    assert difference["low"] < 0 < difference["value"] == pytest.approx(0.012)
    needed = int(found.sentences[2].partition("test on some ")[2].partition(" queries")[0].replace(",", ""))
    # Five times as large as what can be seen: some 2.04 x 5² times the queries.
    half = max(difference["value"] - difference["low"], difference["high"] - difference["value"])
    assert needed == pytest.approx(800 * 2.04 * (half / difference["value"]) ** 2, rel=0.05)


def test_so_small_a_difference_asks_for_other_training_and_no_more_queries() -> None:
    after = verdict(measure(800, mixed(800, 0.37))).sentences[-1]
    assert "there is no gain to see: change what is learned, not the number of test queries" in after
    after = verdict(measure(800, mixed(800, 0.3762))).sentences[-1]
    assert "this one is far smaller: change what is learned, not the number of test queries" in after


def test_few_queries_ask_for_more_of_them_even_where_the_model_lost() -> None:
    after = verdict(measure(60, mixed(60, 0.36))).sentences[-1]
    assert after.startswith("Next: test on 500 queries or more, because with 60 queries only a difference of about")


def test_worse() -> None:
    found = verdict(measure(400, mixed(400, 0.1)))
    assert found.outcome == "worse"
    assert "It is worse than the best control" in found.text and "a difference of -22.0 (" in found.text
    assert found.sentences[-1].startswith("Next: change what is learned")


def test_few_steps_are_named() -> None:
    made = {"rsft_dpo": {"training_steps": {"RSFT": 4, "DPO": 1, "DPO 2": 63}}}
    after = verdict(measure(60, mixed(60, 0.4), made=made)).sentences[-1]
    assert "train on more queries, because RSFT took 4 steps and DPO took 1 step, and so few teach" in after
    assert "; test on some " in after and "with 60 queries only a difference of about" in after
    enough = {"rsft_dpo": {"training_steps": {"RSFT": 100, "DPO": 40}}}
    assert "step" not in verdict(measure(60, mixed(60, 0.4), made=enough)).text


def test_too_few_queries_prove_nothing_whatever_the_interval_says() -> None:
    metrics = measure(4, [1, 1, 1, 1])
    # The bootstrap sees four equal gains and is sure; the test knows that four swaps are 1 in 8.
    assert metrics["differences"]["rsft_dpo_vs_zero_shot"]["mrr"]["low"] > 0
    found = verdict(metrics)
    assert found.outcome == "not proven"
    assert "Interval and p do not agree, so nothing is claimed." in found.text
    assert "only 4 of these 4 rank differently, and from fewer than 6 no test can conclude anything" in found.text
    assert all(tile["kind"] in ("", "main") for tile in headlines(metrics))


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.01, 0.03, 0.01, "better"),
        (-0.03, -0.01, 0.01, "worse"),
        (-0.01, 0.03, 0.2, "not proven"),
        (0.01, 0.03, 0.06, "not proven"),
        (-0.001, 0.03, 0.04, "not proven"),
        (0.0, 0.03, 0.04, "not proven"),
        (0.01, 0.03, 0.05, "not proven"),
    ],
)
def test_interval_and_p_must_agree(low: float, high: float, p: float, said: str) -> None:
    assert outcome({"value": (low + high) / 2, "low": low, "high": high}, p, 0.95) == said


def test_no_control_and_no_model() -> None:
    model = system("rsft", mixed(20, 0.5))
    alone = verdict(evaluate(queries(20), [model], CONFIG))
    assert alone.outcome == "no control" and len(alone.sentences) == 2
    assert "was measured on 20 queries (MRR 60.0 points), but there is no control" in alone.text
    assert "evaluate.systems=[bm25" in alone.text
    # A control that was asked some of the queries is none to hold the model against on all.
    part = system("union", np.full(5, 2), index=np.arange(5))
    assert verdict(evaluate(queries(20), [model, part], CONFIG)).outcome == "no control"
    none = verdict(evaluate(queries(20), [system("bm25", np.full(20, 2))], CONFIG))
    assert none == Verdict("no model", ("No aligned model was measured, so there is nothing to judge.",))


def test_one_control_is_not_the_best_of_several() -> None:
    two = [system("bm25", np.full(400, 2)), system("dpo", mixed(400, 0.6))]
    found = verdict(evaluate(queries(400), two, CONFIG))
    assert found.sentences[0] == "label of dpo was compared with “label of bm25” (MRR 50.0 points) on 400 queries."


def test_several_seeds() -> None:
    plain, model = system("bm25", np.full(400, 2)), system("rsft_dpo", mixed(400, 0.6), "RSFT + DPO")
    seeds = replace(model, others=(system("rsft_dpo", mixed(400, 0.7)), system("rsft_dpo", mixed(400, 0.65))))
    found = verdict(evaluate(queries(400), [plain, seeds], CONFIG))
    assert found.outcome == "better" and len(found.sentences) == 2
    assert found.sentences[0].startswith("RSFT + DPO (mean of 3 training seeds) was compared")
    # Where the seeds contradict each other, the queries alone would be sure; the interval draws seeds too.
    apart = replace(model, others=(system("rsft_dpo", mixed(400, 0.2)),))
    metrics = evaluate(queries(400), [plain, apart], CONFIG)
    assert verdict(metrics).outcome == of_pair(metrics, "rsft_dpo_vs_bm25") == "not proven"


def test_test_sets_and_pools_are_told_apart() -> None:
    # Of every three queries: won, lost, and lost or won by turns.
    ranks = [1, 9, 1, 1, 9, 9] * 100
    config = CONFIG.model_copy(update={"pools": {"in_domain": ("first", "third")}})
    three = [system("bm25", np.full(600, 2)), system("rsft_dpo", ranks)]
    metrics = evaluate(queries(600, ("first", "second", "third")), three, config) | {"split": "test"}
    found = verdict(metrics)
    assert "on 600 test queries of 3 sets." in found.sentences[0]
    assert found.sentences[2] == "By test set: better on first and in_domain; worse on second; not proven on third."
    for part in ("first", "second", "third", "in_domain"):
        assert f"{of_part(metrics, part, 'rsft_dpo_vs_bm25')} on" in found.sentences[2]
    assert "By test set" not in verdict(measure(60, mixed(60, 0.5))).text


def test_dev_queries_are_no_place_to_judge() -> None:
    assert "evaluate.split=test" in verdict(measure(400, mixed(400, 0.6)) | {"split": "dev"}).sentences[-1]


def test_report_terminal_and_card_say_the_same(tmp_path: Path) -> None:
    count = 400
    asked = queries(count)
    three = [
        system("bm25", np.full(count, 5)),
        system("zero_shot", np.full(count, 2)),
        system("rsft", mixed(count, 0.6)),
    ]
    metrics = evaluate(asked, three, CONFIG) | {"split": "test"}
    said = verdict(metrics).text
    write_report(tmp_path, metrics, ReportContext("The title", asked, three, subtitle="of this"))
    html = unescape((tmp_path / "report.html").read_text())
    assert html.index("of this") < html.index(said) < html.index("top-1") and '"verdict good"' in html
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert unescape(lines[4].replace("\\", "")) == said

    made = make_report(tmp_path / "run", metrics=metrics)
    assert said in " ".join(closing(tmp_path / "run", made).split())

    write_model_card(tmp_path, title="T", facts={}, base_model="a/b", results="\n\n".join(results_of(metrics, "rsft")))
    card = (tmp_path / "README.md").read_text()
    assert said in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == [
        "| ---", "| label of bm25", "| label of zero_shot", "| **label of rsft**",
    ]  # fmt: skip
    assert len({row.count("|") for row in rows}) == 1
    assert "+18.0 [" in rows[3] and "< 0.002" in rows[3]


def test_a_card_speaks_of_its_own_model() -> None:
    count = 400
    four = [system("bm25", np.full(count, 2)), system("rsft", mixed(count, 0.1)), system("rsft_dpo", mixed(count, 0.6))]
    metrics = evaluate(queries(count), four, CONFIG)
    assert verdict(metrics).outcome == "better" and verdict(metrics, "rsft").outcome == "worse"
    assert "worse than" in results_of(metrics, "rsft")[0]


def test_what_was_measured_before_still_has_a_verdict() -> None:
    metrics = json.loads(json.dumps(measure(400, mixed(400, 0.6))))
    del metrics["split"]
    assert "on 400 queries; the best" in verdict(metrics).text
