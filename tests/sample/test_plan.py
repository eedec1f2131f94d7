"""The plan: the same whether it is made at once or in parts, and its units are its rows."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqe.artifact import read_parquet, write_parquet
from aqe.config.sample import PromptConfig
from aqe.records import JUDGED, PLAN, table
from aqe.sample import plan
from aqe.sample.plan import PlanReader, make_plan, query_seed, write_plan

PROMPT = PromptConfig(name="short", template="Q: {query} A:")


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 7), st.none() | st.integers(1, 40), st.integers(1, 12))
def test_written_in_parts_it_is_the_plan_of_all(rows: int, size: int, limit: int | None, group: int) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GROUP_ROWS", group)
        queries = table([{"qid": f"q{i}", "text": f"text {i}"} for i in range(rows)], JUDGED)
        write_parquet(queries, Path(directory) / "queries.parquet", 4)
        path = Path(directory) / "plan.parquet"
        settings: dict[str, Any] = {"num_samples": 3, "seed": 1, "queries_per_unit": size, "identity": "model"}
        units = write_plan(path, Path(directory) / "queries.parquet", PROMPT, limit=limit, **settings)
        whole = make_plan(queries.slice(0, limit), PROMPT, **settings)
        assert read_parquet(path).equals(whole) and whole.schema == PLAN
        read = PlanReader(path)
        by_unit = [row for unit in units for row in read(unit)]
    assert by_unit == whole.to_pylist()
    assert [unit.name for unit in units] == sorted(unit.name for unit in units)
    for number, unit in enumerate(units):
        assert unit.start == number * size and unit.stop - unit.start <= size
        assert {row["unit_id"] for row in whole.slice(unit.start, unit.stop - unit.start).to_pylist()} == {
            unit.name.removeprefix(f"{number:09d}-")
        }


def test_a_units_id_tells_all_that_its_candidates_depend_on() -> None:
    queries = table([{"qid": "a", "text": "one"}, {"qid": "b", "text": "two"}], JUDGED)

    def ids(identity: str = "model", seed: int = 0, num_samples: int = 2, prompt: PromptConfig = PROMPT) -> set[str]:
        made = make_plan(queries, prompt, num_samples=num_samples, seed=seed, queries_per_unit=2, identity=identity)
        return set(made["unit_id"].to_pylist())

    other = PromptConfig(name="short", template="{query}:")
    every = [ids(), ids(identity="other"), ids(seed=1), ids(num_samples=3), ids(prompt=other)]
    assert len(set.union(*every)) == len(every)
    assert ids() == ids()


def test_a_querys_seed_is_its_own() -> None:
    assert query_seed(0, "a") == query_seed(0, "a") != query_seed(0, "b")
    assert 0 <= query_seed(5, "a") < 2**31
