"""What is found before any compute is spent."""

from pathlib import Path

import pytest

from aqe.check import check
from aqe.config.pipeline import load_config
from aqe.errors import ConfigError
from tests.tools.small_project import SMALL, write_project


def test_what_is_generated_must_fit_into_the_models_own_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = [*SMALL, "engine.max_model_len=2048"]
    check(load_config("mine.yaml", [*asked, "sample.max_tokens=400"]))
    for key in ("sample", "evaluate"):
        with pytest.raises(
            ConfigError, match=r"max_tokens is 512; .* was made for 512 tokens.*Lower sample\.max_tokens"
        ):
            check(load_config("mine.yaml", [*asked, f"{key}.max_tokens=512"]))


def test_a_prompt_leaves_room_for_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    # The tiny model's tokens are characters: few-shot examples have more than 400.
    for key in (
        "sample.prompt=passage_few_shot",
        "prompt=passage_few_shot",
        "evaluate.zero_shot_prompts=[passage_few_shot]",
    ):
        with pytest.raises(
            ConfigError, match=r"'passage_few_shot' leaves no room .* max_tokens 12 .* more than the 256"
        ):
            check(load_config("mine.yaml", [*SMALL, key]))
    check(load_config("mine.yaml", [*SMALL, "engine.max_model_len=512", "sample.prompt=passage_few_shot"]))
