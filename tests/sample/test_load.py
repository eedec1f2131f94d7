"""Which engine is taken, and what all of them say of a prompt that cannot be continued."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from aqe.config.sample import EngineConfig
from aqe.errors import ConfigError, InputError
from aqe.sample.engine import Request, Sampling, refusal
from aqe.sample.load import choose_engine, make_engine
from serve.engine import Decoding, check_length
from tests.tools import tiny_model


def test_an_engine_that_is_named_is_taken_or_refused() -> None:
    assert choose_engine(EngineConfig(name="transformers"), use_gpu=True) == "transformers"
    if find_spec("vllm"):
        assert choose_engine(EngineConfig(), use_gpu=True) == "vllm"
        return
    assert choose_engine(EngineConfig(), use_gpu=True) == "transformers"
    with pytest.raises(ConfigError, match="vllm is not installed"):
        choose_engine(EngineConfig(name="vllm"), use_gpu=True)


def test_a_prompt_may_be_as_long_as_the_model_less_the_expansion() -> None:
    ids = list(range(90))
    assert refusal("a prompt", ids, 10, 100) is None
    why = refusal("a prompt", ids, 11, 100)
    assert why is not None and "90 tokens" in why and "max_tokens 11" in why and "100" in why
    assert refusal(" \n", ids, 10, 100) == refusal("a prompt", [], 10, 100) == "the prompt is empty"


def test_the_service_refuses_with_the_engines_words(tmp_path: Path) -> None:
    config = EngineConfig(name="transformers", max_model_len=32)
    engine = make_engine("transformers", str(tiny_model.save(tmp_path / "tiny")), config, Sampling(max_tokens=8))
    for prompt, count in (("", 0), ("gold " * 200, 400)):
        (answer,) = engine.generate([Request(prompt, 1, 0)])
        assert isinstance(answer, str)
        with pytest.raises(InputError) as refused:
            check_length(prompt, [0] * count, Decoding(8), 32)
        # The tiny model's tokenizer counts in its own way.
        words, advice = answer.split(";")[-1], ". Shorten the query, or ask for fewer tokens." if count else ""
        assert str(refused.value).split(";")[-1] == words + advice
