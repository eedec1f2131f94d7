"""Settings that TRL would refuse are refused before any compute."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from trl import DPOTrainer

from aqe.align.arguments import batches
from aqe.align.check import DPO_LOSSES, check_align, check_lora
from aqe.config.align import AlignConfig, LoraConfig
from aqe.errors import ConfigError
from tests.tools.families import make_family


def test_defaults_and_passed_through_fields_are_fine() -> None:
    check_align(AlignConfig())
    check_align(
        AlignConfig.model_validate(
            {"dpo": {"trl": {"label_smoothing": 0.1, "max_steps": 3}}, "rsft": {"trl": {"loss_type": "dft"}}}
        )
    )
    check_align(AlignConfig.model_validate({"dpo": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}}))
    check_align(AlignConfig.model_validate({"precision": "bfloat16", "lora": {"target_modules": ["q_proj"]}}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dpo": {"trl": {"label_smoothign": 0.1}}}, r"align\.dpo\.trl\.label_smoothign.*Did you mean label_smoothing"),
        ({"rsft": {"trl": {"nonsense": 1}}}, r"align\.rsft\.trl\.nonsense.*no such field"),
        ({"rsft": {"trl": {"learning_rate": 1}}}, r"Set align\.rsft\.learning_rate"),
        ({"dpo": {"trl": {"beta": 0.2}}}, r"Set align\.dpo\.beta"),
        ({"dpo": {"trl": {"loss_type": "ipo"}}}, r"Set align\.dpo\.loss_type"),
        ({"rsft": {"trl": {"packing": True}}}, "AQE tokenises"),
        ({"dpo": {"loss_type": "sigmod"}}, "sigmod.*sigmoid"),
        ({"dpo": {"loss_type": ["sigmoid", "sfft"]}}, "has sfft; it can be one, or a list, of sigmoid"),
        ({"dpo": {"loss_type": []}}, "has no loss"),
        ({"dpo": {"loss_type": "exo_pair"}}, "label_smoothing above 0"),
        ({"rsft": {"trl": {"loss_type": "hinge"}}}, "nll, dft"),
        ({"rsft": {"lr_scheduler": "wavy"}}, "align.rsft: TRL does not take.*wavy"),
        ({"dpo": {"trl": {"disable_dropout": False}}}, "DPO trains without dropout"),
        ({"lora": {"dropout": 0.1}, "stages": ["dpo"]}, r"align\.lora\.dropout is 0\.1.*Set align\.lora\.dropout to 0"),
        ({"rsft": {"batch_size": 10}, "workers": 4}, "cannot be shared evenly by 4 workers.*1, 2"),
    ],
)
def test_what_cannot_work_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_align(AlignConfig.model_validate(settings))


def test_our_list_of_losses_is_trls() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(DPO_LOSSES) == {
        name for name in source.split("Should be one of [")[1].split("]")[0].split("'") if name.isidentifier()
    }


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "expected"),
    [(16, 4, 2, (4, 2)), (16, 8, 2, (8, 1)), (12, 4, 2, (3, 2)), (14, 4, 2, (1, 7)), (4, 8, 4, (1, 1))],
)
def test_global_batch_is_exact(batch: int, micro: int, workers: int, expected: tuple[int, int]) -> None:
    config = AlignConfig.model_validate({"rsft": {"batch_size": batch}, "micro_batch_size": micro})
    assert batches("rsft", config, workers) == expected
    assert expected[0] * expected[1] * workers == batch


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that have no weights."""
    path = tmp_path_factory.mktemp("models")
    for name in ("qwen2", "gpt2", "mixtral", "gpt_oss"):
        for weights in make_family(name, path).glob("*.safetensors"):
            weights.unlink()
    return path


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {"dropout": 0.1}),
        ("qwen2", {"target_modules": ["embed_tokens", "lm_head"]}),
        ("qwen2", {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]}),
        ("qwen2", {"target_modules": ".*_proj"}),
        ("gpt2", {}),
        ("mixtral", {}),
        ("mixtral", {"target_modules": ["w1", "w2", "w3", "q_proj"]}),
        ("gpt_oss", {}),
    ],
)
def test_lora_on_what_it_can_take(family: str, settings: dict[str, Any], root: Path) -> None:
    check_lora(LoraConfig.model_validate(settings), root / family)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "gpt2",
            {"target_modules": ["q_proj"]},
            r"'q_proj'.* not found .* has c_attn, c_fc, c_proj, lm_head, wpe, wte",
        ),
        ("qwen2", {"target_modules": ["q_proj", "o_porj"]}, "names 'o_porj', which fits no module"),
        ("qwen2", {"target_modules": ["mlp"]}, r"Qwen2MLP.* has down_proj, embed_tokens"),
        ("qwen2", {"target_modules": ["norm"]}, "Qwen2RMSNorm.*not supported"),
        ("qwen2", {"target_modules": "(q_proj"}, "unterminated"),
        ("mixtral", {"target_modules": ["w1"]}, "without also targeting w3"),
        ("mixtral", {"target_modules": ["w1", "w2", "w3", "nonsense"]}, "names 'nonsense'"),
        ("mixtral", {"dropout": 0.1}, "lora_dropout"),
        ("gpt_oss", {"target_modules": ["experts"]}, "GptOssExperts.*not supported"),
    ],
)
def test_lora_on_what_it_cannot_take(family: str, settings: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_lora(LoraConfig.model_validate(settings), root / family)
