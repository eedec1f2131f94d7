"""Models that keep a state beside, or in place of, keys and values: what the check lets through is computed right."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aqe.base_model import check_model
from aqe.config.data import ModelConfig
from aqe.config.sample import EngineConfig
from aqe.sample.engine import Request, Sampling
from aqe.sample.engine_transformers import TransformersEngine
from tests.tools import tiny_model

TOKENS = 12
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
MAMBA |= {"mamba_chunk_size": 8}
LINEAR: dict[str, Any] = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

#: By model_type, what each says beside tiny_model.LLAMA.
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": MAMBA
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64, "head_dim": 8},
    "qwen3_next": LINEAR | EXPERTS | {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
}
#: Those that compute slowly without their own kernels are for the slow suite.
EACH = [pytest.param(name, marks=pytest.mark.slow if name in ("falcon_h1", "qwen3_next") else ()) for name in HYBRIDS]


@pytest.mark.parametrize("model_type", EACH)
def test_candidates_of_prompts_together_are_those_of_each_alone(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **tiny_model.LLAMA | HYBRIDS[model_type])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_model.tokenizer().save_pretrained(tmp_path)
    assert check_model(ModelConfig(source=str(tmp_path))) is not None

    made = TransformersEngine(str(tmp_path), EngineConfig(max_model_len=200), Sampling(TOKENS))
    questions = ["a", "who wrote carmen?", "what is the capital of australia and why", "ab\ncd"]
    continued = set()
    # Of different lengths, and with a beginning that is long enough to be computed once.
    for prompts in (questions, [f"question: who wrote it? answer: {question}" for question in questions]):
        for prompt, answer in zip(prompts, made.generate([Request(p, 2, 0) for p in prompts]), strict=True):
            ids = made.tokenizer(prompt, return_tensors="pt")["input_ids"]
            out = made.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
            alone = tuple(out.sequences[0, ids.shape[1] :].tolist())
            logprobs = torch.stack(out.logits, 1)[0].log_softmax(-1)
            logprob = logprobs.gather(1, out.sequences[0, ids.shape[1] :, None]).sum().item()
            assert not isinstance(answer, str)
            assert [generated.token_ids for generated in answer] == [alone, alone]
            assert [generated.logprob for generated in answer] == pytest.approx([logprob] * 2, abs=1e-3)
            continued.add(alone)
    assert len(continued) > len(questions), "a model that hears its prompt"
