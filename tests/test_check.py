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
    check(load_config("mine.yaml", [*asked, "sample.max_tokens=511"]))
    for key in ("sample", "evaluate"):
        with pytest.raises(
            ConfigError, match=r"max_tokens is 512; .* was made for 512 tokens.*Lower sample\.max_tokens"
        ):
            check(load_config("mine.yaml", [*asked, f"{key}.max_tokens=512"]))
