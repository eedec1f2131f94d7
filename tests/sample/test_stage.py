"""Stages that ask models: together they give what each gives alone."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe.artifact import Artifact, write_parquet
from aqe.base_model import LanguageModel
from aqe.config.sample import EngineConfig, PromptConfig, SampleConfig
from aqe.run import Run
from aqe.sample.stage import Asked, Generation, sample_all
from tests.tools import tiny_model

PROMPT = PromptConfig(name="plain", template="{query}:", stop=("\n",))
ENGINE = EngineConfig(name="transformers", workers=1)


def judged(run: Run) -> Artifact:
    """Five queries, as the stage that judges leaves them."""

    def build(out: Path) -> dict[str, Any]:
        queries = {"qid": [f"q{i}" for i in range(5)], "text": [f"query {i}" for i in range(5)]}
        write_parquet(pa.table(queries), out / "queries.parquet")
        return {}

    return run.make("judge_queries", config={"split": "test"}, inputs={}, build=build)


def asked(run: Run, models: list[Path]) -> list[Asked]:
    """What is drawn from the first, and the greedy expansions of each."""
    sample = SampleConfig(num_samples=3, max_tokens=6, queries_per_unit=2)
    queries, found = judged(run), [LanguageModel(path, path.name, path.name, None) for path in models]
    draw = Asked("sample_train", Generation.draw(sample, ENGINE, PROMPT), queries, found[0])
    greedy = Generation.greedy(sample, ENGINE, PROMPT, 6)
    return [draw, *(Asked(f"expand_test_{model.source}", greedy, queries, model) for model in found)]


def test_models_asked_in_one_pool_answer_as_each_alone(ray_cluster: None, tmp_path: Path) -> None:
    models = [tiny_model.save(tmp_path / "small"), tiny_model.save(tmp_path / "wide", intermediate_size=80)]
    said: list[str] = []
    together = Run(tmp_path / "together", say=said.append)
    made = sample_all(together, asked(together, models))
    alone = Run(tmp_path / "alone", say=said.append)
    for one, artifact in zip(asked(alone, models), made, strict=True):
        (single,) = sample_all(alone, [one])
        assert artifact.read().equals(single.read()) and artifact.path.name == single.path.name
    small, wide = (artifact.read()["raw"].to_pylist() for artifact in made[1:])
    assert len(small) == 5 and small != wide
    assert all(artifact.stats["engine"] == "transformers" for artifact in made)


def test_what_is_made_is_not_asked_again(ray_cluster: None, tmp_path: Path) -> None:
    models = [tiny_model.save(tmp_path / "small"), tiny_model.save(tmp_path / "wide", intermediate_size=80)]
    run = Run(tmp_path / "run", say=lambda line: None)
    first = sample_all(run, asked(run, models)[:2])
    before = [(artifact.path / "manifest.json").stat().st_mtime_ns for artifact in first]
    again = sample_all(run, asked(run, models))
    assert [(artifact.path / "manifest.json").stat().st_mtime_ns for artifact in again[:2]] == before
    assert len(again) == 3 and again[2].read().num_rows == 5
