"""What a run tells: a stage once, what it cost, how many rows it may lose, and why it lost some."""

from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from aqe.artifact import write_parquet
from aqe.config.pipeline import PriceConfig
from aqe.errors import DeadLetterError
from aqe.run import Run


def test_a_stage_is_said_once_as_made_or_as_done_before_by_an_earlier_run(tmp_path: Path) -> None:
    said: list[str] = []
    run = Run(tmp_path / "new" / "run", said.append, PriceConfig(cpu=1.0))
    stats = {"queries": 4, "cpu_hours": 2.0, "gpu_hours": 0.0}
    make = partial(Run.make, stage="sample", config={}, inputs={}, build=lambda out: stats)
    artifacts = [make(run) for _ in range(3)]
    assert artifacts[0] == artifacts[1] == artifacts[2]
    # Asked for again, it is no news: this run has made it.
    assert said == [
        "sample: made in 00:00, 2 CPU hours (500 per 1,000 rows), 2.00 at the configured price",
    ]
    said.clear()
    again = Run(run.root, said.append)
    assert [make(again) for _ in range(3)] == artifacts
    assert said == [f"sample: done before, {artifacts[0].path.name}"]
    assert again.used == run.used == {artifacts[0].path.name}


def test_too_many_dead_letters_are_an_error_with_their_reasons(tmp_path: Path) -> None:
    letters = tmp_path / "dead_letters.parquet"
    write_parquet(pa.table({"reason": ["too long", "too long", "empty"]}), letters)
    Run(tmp_path, max_dead_share=0.3).check_dead("sample", letters, 3, 10)
    with pytest.raises(DeadLetterError, match=r"3 of 10 rows .* 2 x too long; 1 x empty"):
        Run(tmp_path, max_dead_share=0.29).check_dead("sample", letters, 3, 10)


def test_a_manifest_counts_dead_letters_by_their_reasons(tmp_path: Path) -> None:
    def build(out: Path) -> dict[str, int]:
        write_parquet(pa.table({"reason": ["too long", "empty", "too long"]}), out / "dead_letters" / "unit.parquet")
        return {"rows_in": 9, "dead": 3}

    def refuse(out: Path) -> dict[str, int]:
        reasons = ["no text"] * 2 + [f"line {number}" for number in range(30)]
        write_parquet(pa.table({"reason": reasons}), out / "dead_letters.parquet")
        return {"passages": 7}

    run = Run(tmp_path, lambda line: None)
    failed = run.make("sample", config={}, inputs={}, build=build)
    assert failed.stats["dead"] == 3 and failed.stats["dead_reasons"] == {"too long": 2, "empty": 1}
    # As many reasons as rows are no list that anybody reads.
    refused = run.make("corpus", config={}, inputs={}, build=refuse)
    reasons = refused.stats["dead_reasons"]
    assert refused.stats["dead"] == sum(reasons.values()) == 32
    assert next(iter(reasons.items())) == ("no text", 2) and reasons["other reasons"] == 32 - 2 - 19
    whole = run.make("rank", config={}, inputs={}, build=lambda out: {"dead": 0})
    assert "dead_reasons" not in whole.stats
