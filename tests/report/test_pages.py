"""Tables of pages, from results."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aqe.evaluate.compare import CONTROLS, System, evaluate
from aqe.evaluate.measures import COLUMNS
from aqe.report.console import points
from aqe.report.pages import KINDS, fill
from aqe.report.results import results
from tests.report.test_report import CONFIG, make_queries, make_systems

PAGE = """# Title

<!-- table small only -->
old
<!-- end -->
between
<!-- differences small both -->
<!-- end -->

<!-- sets small bm25 -->
<!-- end -->
<!-- seeds small mrr -->
<!-- end -->
<!-- moved small all -->
<!-- end -->
<!-- chosen small all -->
<!-- end -->
<!-- gain small rsft_dpo_vs_zero_shot -->
<!-- end -->
<!-- efficiency small all -->
<!-- end -->
last
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    config = CONFIG.model_copy(update={"pools": {"both": ("only",)}})
    systems = [_with_another_seed(one) if one.name.startswith("rsft") else one for one in make_systems()]
    metrics = evaluate(make_queries(), systems, config)
    made = {name: {"cpu_hours": 0.125, "training_rows": [30, 20]} for name in metrics["systems"]}
    choices = {"zero_shot_cut": {"chosen": "2", "dev_mrr": {"1": 0.2, "2": 0.345, "4": 0.3}}}
    of = results({**metrics, "chosen_on_dev": choices, "made": made})
    directory = tmp_path_factory.mktemp("results")
    # What weight_one.py writes has its systems and gains at the top.
    once = {"systems": {n: of["systems"][n] | s for n, s in of["datasets"]["only"].items()}}
    whole = {**of, **once, "relative_gains": of["relative_gains"] | of["relative_gains"]["only"]}
    # And what efficiency.py writes.
    arm = {"seconds": {"expand": 0.5, "retrieve": 0.001}, "seconds_per_query": 0.501, "peak_mib": 1234.0}
    whole |= {"arms": {name: {**arm, "models_mib": 700.0} for name in ("expand", "filter")}, "candidates": 16}
    whole |= {"time_ratio": 0.2, "memory_ratio": 0.75, "memory_ratio_of_models": 0.6}
    whole |= {"paper": {"time_ratio": 0.305, "memory_ratio": 0.289}}
    (directory / "small.json").write_text(json.dumps(whole))
    return directory, of


def _with_another_seed(system: System) -> System:
    return replace(system, others=(replace(system, ranks=system.ranks[::-1].copy(), found=system.found[::-1].copy()),))


def test_a_page_shows_the_numbers_of_the_results(found: tuple[Path, dict[str, Any]]) -> None:
    directory, of = found
    page = fill(PAGE, directory)
    assert "old" not in page
    assert page.startswith("# Title\n") and page.endswith("\nlast\n") and "\nbetween\n" in page
    whole = page.partition("<!-- end -->")[0]
    rows = {row.split("|")[1].strip(" *"): row for row in whole.splitlines() if row.startswith("|")}
    for name, system in of["systems"].items():
        row = next(row for label, row in rows.items() if label.startswith(system["label"]))
        for measure in COLUMNS:
            assert points(of["datasets"]["only"][name][measure]["value"]) in row
    apart = page.partition("<!-- differences")[2].partition("<!-- end -->")[0]
    for control in CONTROLS:
        of_pair = of["differences"]["both"][f"rsft_dpo_vs_{control}"]
        above = of_pair["mrr"]["low"] > 0 and of_pair["top_1"]["low"] > 0
        (row,) = [r for r in apart.splitlines() if r.startswith(f"| {of['systems'][control]['label']} |")]
        assert row.endswith("| yes |" if above else "| no |")
        assert points(of_pair["mrr"]["value"], sign=True) in row
    of_sets = page.partition("<!-- sets")[2].partition("<!-- end -->")[0]
    assert re.findall(r"^\| `(\w+)` \|", of_sets, re.MULTILINE) == ["only", "both"]
    assert "Relative gain in top-1 over the control that is best in it" in apart
    block = page.partition("<!-- moved")[2].partition("<!-- end -->")[0]
    for control in CONTROLS:
        seen = of["comparisons"][f"rsft_dpo_vs_{control}"]
        (row,) = [r for r in block.splitlines() if r.startswith(f"| {of['systems'][control]['label']} |")]
        assert f"| {seen['wins']}/{seen['losses']}/{seen['ties']} |" in row
        assert row.endswith(f"| {seen['halvings']:+.2f} |")
    block = page.partition("<!-- chosen")[2].partition("<!-- end -->")[0]
    label = of["systems"]["zero_shot_cut"]["label"]
    assert f"| {label} | 2 | 3 | 34.5 | 30 + 20 | 0.12 |" in block
    block = page.partition("<!-- gain")[2].partition("<!-- end -->")[0]
    share = of["relative_gains"]["only"]["rsft_dpo_vs_zero_shot"]["top_1"]["value"]
    assert f" {share * 100:+.1f} % [" in block.splitlines()[-1]
    assert points(of["datasets"]["only"]["zero_shot"]["top_1"]["value"]) in block.splitlines()[-3]
    block = page.partition("<!-- efficiency")[2].partition("<!-- end -->")[0]
    assert "| 16 candidates, then the filter | 0.500 | 0.001 | 0.501 | 1,234 | 700 |" in block
    assert "| less |  |  | -80.0 % | -25.0 % | -40.0 % |" in block
    assert "| the paper's |  |  | -69.5 % | -71.1 % |  |" in block
    block = page.partition("<!-- seeds")[2].partition("<!-- end -->")[0]
    several = [system for system in of["systems"].values() if "of_seeds" in system]
    assert several and len(block.splitlines()) == 3 + len(several)
    for system in several:
        values = [run["mrr"] for run in system["of_seeds"]]
        cells = [points(value) for value in [*values, sum(values) / len(values)]]
        assert f"| {system['label']} | {' | '.join(cells)} |" in block


def test_filled_again_it_is_the_same(found: tuple[Path, dict[str, Any]]) -> None:
    page = fill(PAGE, found[0])
    assert fill(page, found[0]) == page


def test_every_kind_of_block_is_tried() -> None:
    assert set(re.findall(r"<!-- (\w+) small", PAGE)) == KINDS.keys()


def test_a_page_that_asks_for_what_is_not_there_fails(found: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(FileNotFoundError):
        fill(PAGE.replace("small", "large"), found[0])
    with pytest.raises(KeyError):
        fill(PAGE.replace("table", "tabel"), found[0])
    with pytest.raises(KeyError):
        fill(PAGE.replace("small only", "small other"), found[0])
