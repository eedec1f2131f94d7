"""The expander: settings of a model, one greedy expansion, and errors that say what to do."""

import json
from pathlib import Path

import pytest

from aqe.artifact import make
from aqe.compose import clean
from aqe.config.sample import EngineConfig, PromptConfig
from aqe.errors import ArtifactError, ConfigError, InputError
from aqe.expand.expander import Expander
from aqe.expand.settings import SETTINGS, ExpanderSettings
from aqe.report.card import write_model_card
from aqe.sample.engine import Request, Sampling
from aqe.sample.engine_transformers import TransformersEngine
from tests.test_artifact import flip
from tests.tools import tiny_model

QUERIES = ["who wrote carmen?", "gold", "a thin strand of DNA in the cell nucleus"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("artifact") / "model")


def test_expands_as_the_engine_does_with_the_defaults(tiny: Path) -> None:
    expander = Expander.load(tiny)
    assert expander.settings == ExpanderSettings()
    assert (expander.settings.prompt.name, expander.settings.query_weight, expander.settings.max_tokens) == (
        "ear",
        1,
        100,
    )
    engine = TransformersEngine(str(tiny), EngineConfig(), Sampling(100))
    (answer,) = engine.generate([Request("gold ? To answer this question, we need to know", 1, 7)])
    assert not isinstance(answer, str)
    made = expander.expand("gold")
    assert str(made) == made.text == clean(answer[0].raw)
    assert made.composed == f"gold ? {made.text}"
    assert (made.query, made.finish_reason, made.num_tokens) == ("gold", answer[0].finish_reason, answer[0].num_tokens)
    assert made.milliseconds > 0


def test_together_is_the_same_as_one_by_one(tiny: Path) -> None:
    expander = Expander.load(tiny, max_tokens=30)
    assert [e.text for e in expander.expand_many(QUERIES)] == [expander.expand(q).text for q in QUERIES]
    assert expander.expand_many([]) == []


def test_a_model_brings_its_settings_and_arguments_override_them(tmp_path: Path) -> None:
    path = tiny_model.save(tmp_path)
    own = ExpanderSettings(
        prompt=PromptConfig(name="mine", template="{query}:", stop=("e",)), query_weight=3, max_tokens=9
    )
    own.write(path)
    expander = Expander.load(path)
    assert expander.settings == own
    made = expander.expand("gold?")
    assert made.num_tokens <= 9 and "e" not in made.text
    assert made.composed == f"gold gold gold ? {made.text}"
    changed = Expander.load(str(path), prompt="passage", query_weight=1).settings
    assert (changed.prompt.name, changed.query_weight, changed.max_tokens) == ("passage", 1, 9)


def test_an_artifact_that_holds_the_model_will_do(tiny: Path) -> None:
    assert Expander.load(tiny.parent).path == tiny
    assert Expander.load(str(tiny.parent)).path == tiny


def test_packaged_model() -> None:
    made = Expander.load("package:smollm2-135m-instruct", prompt="chat_passage", max_tokens=8).expand(
        "who wrote Carmen?"
    )
    assert made.num_tokens == 8
    assert "Carmen" in made.text


def test_errors_say_what_to_do(tiny: Path, tmp_path: Path) -> None:
    expander = Expander.load(tiny, engine=EngineConfig(name="transformers", max_model_len=160))
    with pytest.raises(InputError, match="the query is empty"):
        expander.expand(" \n")
    with pytest.raises(InputError, match="number 2 of 3"):
        expander.expand_many(["a", "", "b"])
    with pytest.raises(InputError, match=r"cannot expand the query 'xxx.* 160 "):
        expander.expand("x" * 100)
    with pytest.raises(ConfigError, match="query_weight"):
        Expander.load(tiny, query_weight=0)
    with pytest.raises(ConfigError, match="there is no prompt named 'ears'"):
        Expander.load(tiny, prompt="ears")
    with pytest.raises(ConfigError, match="no chat template"):
        Expander.load(tiny, prompt="chat_passage")
    with pytest.raises(InputError, match="no directory"):
        Expander.load(tmp_path / "nowhere")
    broken = tiny_model.save(tmp_path / "broken")
    (broken / SETTINGS).write_text(json.dumps({"prompt": "ear"}))
    with pytest.raises(InputError, match=r"aqe\.json"):
        Expander.load(broken)


def test_weights_that_are_not_those_that_were_trained_are_not_loaded(tmp_path: Path) -> None:
    def build(out: Path) -> dict[str, int]:
        tiny_model.save(out / "model")
        ExpanderSettings(query_weight=2).write(out / "model")
        return {}

    artifact = make(tmp_path, "align_rsft", config={}, inputs={}, build=build)
    # What is written anew beside the weights is no harm.
    ExpanderSettings(query_weight=3).write(artifact.path / "model")
    write_model_card(artifact.path / "model", title="mine", facts={}, base_model="a/b")
    assert Expander.load(artifact.path).settings.query_weight == 3
    weights = artifact.path / "model" / "model.safetensors"
    flip(weights)
    for path in (artifact.path, artifact.path / "model"):
        with pytest.raises(ArtifactError, match=f"{weights} holds other bytes"):
            Expander.load(path)
