"""Which engine is taken, and what all of them say of a prompt that cannot be continued."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from aqe.config.sample import EngineConfig
from aqe.errors import ConfigError, InputError
from aqe.sample.engine import Request, Sampling, precision, refusal
from aqe.sample.load import CPU_HEAD_SIZES, choose_engine, cpu_build, make_engine
from serve.engine import Decoding, check_length
from tests.tools import tiny_model


def test_an_engine_that_is_named_is_taken_or_refused() -> None:
    assert choose_engine(EngineConfig(name="transformers"), use_gpu=True, model=None) == "transformers"
    if find_spec("vllm"):
        assert choose_engine(EngineConfig(), use_gpu=True, model=None) == "vllm"
        return
    assert choose_engine(EngineConfig(), use_gpu=True, model=None) == "transformers"
    with pytest.raises(ConfigError, match="vllm is not installed"):
        choose_engine(EngineConfig(name="vllm"), use_gpu=True, model=None)


@pytest.mark.skipif(not cpu_build(), reason="vLLM's build for CPUs is not installed")
def test_a_model_that_vllm_cannot_take_on_a_cpu_gets_the_other_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tiny_model.save(tmp_path / "small")  # Heads of 8.
    assert choose_engine(EngineConfig(), use_gpu=False, model=small) == "transformers"
    assert "no attention for heads of 8" in capsys.readouterr().out
    assert choose_engine(EngineConfig(), use_gpu=True, model=small) == "vllm"
    with pytest.raises(ConfigError, match=r"heads of 8 .*Set engine.name: transformers"):
        choose_engine(EngineConfig(name="vllm"), use_gpu=False, model=small)
    large = tiny_model.save(tmp_path / "large", hidden_size=128)
    gpt2 = tiny_model.save(tmp_path / "gpt2", "gpt2", hidden_size=128)
    for model in (large, gpt2):
        assert choose_engine(EngineConfig(), use_gpu=False, model=model) == "vllm"
    assert not capsys.readouterr().out
    # A configuration need not say what its class knows: Qwen3's heads are 128 wide.
    sparse = {"model_type": "qwen3", "hidden_size": 32, "num_attention_heads": 4}
    (large / "config.json").write_text(json.dumps(sparse))
    assert choose_engine(EngineConfig(), use_gpu=False, model=large) == "vllm"
    (large / "config.json").write_text(
        json.dumps({"model_type": "lfm2", "layer_types": ["conv"], "num_hidden_layers": 1})
    )
    with pytest.raises(ConfigError, match=r"attention alone, not for conv .*Set engine.name: transformers"):
        choose_engine(EngineConfig(name="vllm"), use_gpu=False, model=large)


@pytest.mark.skipif(not cpu_build(), reason="vLLM's build for CPUs is not installed")
def test_the_head_sizes_are_vllms_own() -> None:
    asked = (
        "from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend as b; print(b.get_supported_head_sizes())"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(list(CPU_HEAD_SIZES))


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


@pytest.mark.parametrize(
    ("asked", "gpu", "stored", "able", "resolved"),
    [
        ("float16", True, "bfloat16", True, "float16"),
        ("auto", True, "float32", False, "bfloat16"),
        ("auto", False, "bfloat16", True, "bfloat16"),
        ("auto", False, "bfloat16", False, "float32"),
        ("auto", False, "float32", True, "float32"),
        ("bfloat16", False, "float32", False, "bfloat16"),
    ],
)
def test_precision_is_that_of_the_weights_where_a_cpu_multiplies_it(
    asked: Any, gpu: bool, stored: str, able: bool, resolved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.dtype = stored
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    assert precision(EngineConfig(dtype=asked), str(tmp_path), gpu) == resolved
