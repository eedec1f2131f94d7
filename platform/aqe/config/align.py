"""Alignment: RSFT, then DPO."""

from typing import Any, Literal

from pydantic import Field, model_validator

from aqe.config.base import Config


class TrainConfig(Config):
    """What RSFT and DPO share. AdamW without weight decay, as in the paper."""

    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of AdamW."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows or pairs."""
    batch_size: int = Field(default=16, ge=1)
    """Rows (RSFT) or pairs (DPO) per optimiser step, over all workers."""
    warmup_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises to its peak."""
    lr_scheduler: str = "linear"
    """How the learning rate falls after the warm-up: a name that transformers knows."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""
    trl: dict[str, Any] = Field(default_factory=dict)
    """Any other field of TRL's SFTConfig or DPOConfig. That class checks it before any compute is spent."""


class RsftConfig(TrainConfig):
    """Rejection-sampling fine-tuning: maximum likelihood of the best-ranked candidate."""


class DpoConfig(TrainConfig):
    """Direct preference optimisation: the best candidate against the worst. The frozen start model is the reference."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is kept close to the start model. Larger is closer."""
    loss_type: str | tuple[str, ...] = "sigmoid"
    """TRL's name of a loss, or a list of losses that are added. `[sigmoid, sft]` also raises the likelihood of the
    chosen text."""
    loss_weights: tuple[float, ...] | None = None
    """One weight for each loss in `loss_type`. `null` gives all the same weight."""
    on_policy: bool = False
    """`true` draws the pairs from the model that DPO starts from, with the prompt that serves. `false` draws them from
    the base model, with the prompt that samples."""
    rounds: int = Field(default=1, ge=1, le=10)
    """How many times DPO runs. From the second round on, its pairs are on-policy."""


class LoraConfig(Config):
    """Low-rank adapters instead of full fine-tuning. They are merged into the model at the end."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapters: their output is multiplied by `alpha / r`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapters in RSFT. DPO trains without dropout."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers that get an adapter, by name, as in PEFT's LoraConfig."""


class AlignConfig(Config):
    """Training: which stages, and how they run."""

    stages: tuple[Literal["rsft", "dpo"], ...] = ("rsft", "dpo")
    """Stages of the job `align_model`, in order: `[rsft]`, `[dpo]` or both. A whole run trains `models` instead."""
    rsft: RsftConfig = RsftConfig()
    """Settings of RSFT."""
    dpo: DpoConfig = DpoConfig()
    """Settings of DPO."""
    lora: LoraConfig | None = None
    """Settings of LoRA. `null` means full fine-tuning."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO stage. 0 shards nothing."""
    workers: int | None = Field(default=None, ge=1)
    """Ray Train workers. `null` means one per GPU (as many as divide `batch_size` evenly), or one worker on all
    cores."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Rows or pairs that a worker puts through the model at once. The rest of its batch is accumulated."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of training. `auto` means bfloat16 on a GPU and float32 on a CPU."""
    max_length: int = Field(default=512, ge=16)
    """Tokens of prompt and completion together. Longer rows become dead letters; they are never cut."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Optimiser steps between two checkpoints."""
    max_failures: int = Field(default=2, ge=0)
    """How often a stage restarts from its last checkpoint after a worker died."""
    seed: int = 0
    """Seed of training: the order of rows, and dropout."""

    def uses_bfloat16(self, use_gpu: bool) -> bool:
        """Whether a stage trains in bfloat16 (with float32 master weights) rather than in float32."""
        return self.precision == "bfloat16" or (self.precision == "auto" and use_gpu)

    def decisive(self, kind: Literal["rsft", "dpo"]) -> dict[str, Any]:
        """Settings that a stage's result depends on, as JSON: not those that only say how fast it comes."""
        apart = {"stages", "rsft", "dpo", "workers", "max_failures", "checkpoint_steps"}
        stage = self.rsft if kind == "rsft" else self.dpo
        # Which pairs, and how often, is seen in the artifacts that the stage reads.
        own = stage.model_dump(mode="json", exclude={"on_policy", "rounds"})
        return {"kind": kind, **self.model_dump(exclude=apart, mode="json"), **own}

    @model_validator(mode="after")
    def _weights(self) -> "AlignConfig":
        losses, weights = self.dpo.loss_type, self.dpo.loss_weights
        if weights is not None and (isinstance(losses, str) or len(losses) != len(weights)):
            raise ValueError(
                f"`dpo.loss_weights` has {len(weights)} numbers; give one for each loss of the list `dpo.loss_type`"
            )
        return self

    @model_validator(mode="after")
    def _order(self) -> "AlignConfig":
        if self.stages not in {("rsft",), ("dpo",), ("rsft", "dpo")}:
            raise ValueError(f"`stages` is {list(self.stages)}; it can be [rsft], [dpo] or [rsft, dpo]")
        return self
