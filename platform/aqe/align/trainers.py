"""TRL's trainers on token ids of our own. Imports trl: only training workers and tests import this module."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from peft import LoraConfig as PeftLoraConfig
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
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


#: Batches whose rows are sorted by length together. With 4, padding adds 18 % to the quickstart's RSFT rows in place of
#: 61 %, 31 % to its pairs in place of 68 %; with more, batches would differ more from those that chance makes.
WINDOW = 4


class ByLength(Sampler[int]):
    """Rows in a random order that is another one in each epoch, in batches of rows of about the same length.

    The rows of `WINDOW` batches, as they follow each other in that order, are sorted by length and cut into batches
    again, which come in a random order too: little is padded, and two workers get about as much to do.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader, which is why all workers and a resumed run have the same order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # A pair of numbers, made one: seed 0 in epoch 1 is not seed 1 in epoch 0.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        # What is left over when the rows do not divide into batches comes last, as a smaller batch.
        whole = len(order) // self._batch * self._batch
        for start in range(0, whole, WINDOW * self._batch):
            rows = order[start : min(start + WINDOW * self._batch, whole)]
            rows.sort(key=lambda row: -self._lengths[row])
            for at in torch.randperm(len(rows) // self._batch, generator=generator).tolist():
                yield from rows[at * self._batch : (at + 1) * self._batch]
        yield from order[whole:]


class AlikeTogether:
    """A trainer whose batches hold rows of about the same length: see `ByLength`."""

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        rows = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return ByLength(lengths(rows), batch, args.data_seed)


def lengths(rows: Any) -> list[int]:
    """Tokens of each row of a dataset, as it is padded: of a pair, its prompt with the longer completion."""
    if "input_ids" in rows.column_names:
        return [len(ids) for ids in rows["input_ids"]]
    sides = zip(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True)
    return [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in sides]


class RsftOnIds(EveryStepCounts, AlikeTogether, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer for rows of `input_ids` and `labels`, which it takes as they are."""


class DpoOnIds(EveryStepCounts, AlikeTogether, DPOTrainer):  # type: ignore[misc]
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
