"""Settings that TRL would refuse are refused before any compute."""

import inspect
from typing import Any

import pytest
from trl import DPOTrainer

from aqe.align.arguments import batches
from aqe.align.check import DPO_LOSSES, check_align
from aqe.config.align import AlignConfig
from aqe.errors import ConfigError


def test_defaults_and_passed_through_fields_are_fine() -> None:
    check_align(AlignConfig())
    check_align(
        AlignConfig.model_validate(
            {"dpo": {"trl": {"label_smoothing": 0.1, "max_steps": 3}}, "rsft": {"trl": {"loss_type": "dft"}}}
        )
    )
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
        ({"dpo": {"loss_type": "exo_pair"}}, "label_smoothing above 0"),
        ({"rsft": {"trl": {"loss_type": "hinge"}}}, "nll, dft"),
        ({"rsft": {"lr_scheduler": "wavy"}}, "align.rsft: TRL does not take.*wavy"),
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
