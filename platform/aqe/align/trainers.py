"""TRL's trainers on token ids of our own. Imports trl: only training workers and tests import this module."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from peft import LoraConfig as PeftLoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from aqe.align.arguments import Kind
from aqe.config.align import LoraConfig


class EveryStepCounts:
    """A trainer whose learning rate is 0 at no step.

    transformers begins a warm-up at 0 and ends a decay there, after the last step: the first step would change nothing.
    The same curve is cut one step longer and begun at its second.
    """

    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        made: Any = super().create_scheduler(num_training_steps + 1, optimizer)  # type: ignore[misc]
        if isinstance(made, LambdaLR):
            made.lr_lambdas = [partial(_later, rate) for rate in made.lr_lambdas]
            for group, rate in zip(made.optimizer.param_groups, made.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * rate(0)
        return made


def _later(rate: Callable[[int], float], step: int) -> float:
    return rate(step + 1)


class RsftOnIds(EveryStepCounts, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer for rows of `input_ids` and `labels`, which it takes as they are."""


class DpoOnIds(EveryStepCounts, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer for rows of `prompt_ids`, `chosen_ids`, `rejected_ids`.

    TRL's own preparation tokenises prompt + completion as one text and appends the end-of-text token to every
    completion, so that a candidate cut at the token limit would be taught to stop there.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def score_completions_only() -> None:
    """On a CPU, make TRL's fused head skip the prompt's tokens, as it does on a GPU.

    TRL 1.16 multiplies every position by the whole vocabulary where there is no Triton (to keep shapes fixed for
    compilers). Prompts are most of our tokens, so that is most of the head's work; the masked values are the same.
    """
    trl_utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")


def trl_config(kind: Kind, fields: dict[str, Any]) -> Any:
    """SFTConfig or DPOConfig from `arguments`. Raises TypeError or ValueError for what it does not take."""
    return SFTConfig(**fields) if kind == "rsft" else DPOConfig(**fields)


def build_trainer(
    kind: Kind,
    *,
    model: torch.nn.Module,
    tokenizer: Any,
    dataset: Any,
    args: Any,
    lora: LoraConfig | None,
    callbacks: Sequence[Any] = (),
) -> Any:
    """The trainer of one stage, from what TRL's own takes: hence more than six arguments.

    `dataset` holds rows of `tokens.encode`; `model` is the stage's start and reference.
    """
    score_completions_only()
    trainer_class = RsftOnIds if kind == "rsft" else DpoOnIds
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=None if lora is None else peft_config(lora),
        callbacks=list(callbacks),
    )
    # It prints every log row; the driver shows progress, and the curves keep the rows.
    trainer.remove_callback(PrinterCallback)
    return trainer


def peft_config(lora: LoraConfig) -> Any:
    modules = lora.target_modules
    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
