"""Alignment: RSFT, then DPO."""

from typing import Any, Literal

from pydantic import Field, model_validator

from aqe.config.base import Config


class TrainConfig(Config):
    """What RSFT and DPO share. AdamW without weight decay, as the paper."""

    learning_rate: float = Field(default=5e-5, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, ge=1)
    """Rows (RSFT) or pairs (DPO) an optimiser step, over all workers."""
    warmup_ratio: float = Field(default=0.05, ge=0, le=1)
    lr_scheduler: str = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    trl: dict[str, Any] = Field(default_factory=dict)
    """Any further field of TRL's SFTConfig or DPOConfig; checked by that class before compute is spent."""


class RsftConfig(TrainConfig):
    """Rejection-sampling fine-tuning: maximum likelihood of the best-ranked candidate."""


class DpoConfig(TrainConfig):
    """Direct preference optimisation of best against worst, against the frozen start model."""

    beta: float = Field(default=0.1, gt=0)
    loss_type: str | tuple[str, ...] = "sigmoid"
    """TRL's name of a loss, or of several that are added: [sigmoid, sft] also raises the likelihood of the chosen."""
    loss_weights: tuple[float, ...] | None = None
    """Of several losses, one each; null weighs all alike."""
    on_policy: bool = False
    """Pairs are drawn from the model that the stage starts from, under the prompt that serves; else from the base
    model, under the prompt that samples."""
    rounds: int = Field(default=1, ge=1, le=10)
    """Times that DPO is done; from the second on its pairs are on-policy."""


class LoraConfig(Config):
    """Low-rank adapters in place of full fine-tuning; merged into the model at the end."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In RSFT; DPO trains without any dropout."""
    target_modules: str | tuple[str, ...] = "all-linear"


class AlignConfig(Config):
    """One model: its stages and how they run."""

    stages: tuple[Literal["rsft", "dpo"], ...] = ("rsft", "dpo")
    rsft: RsftConfig = RsftConfig()
    dpo: DpoConfig = DpoConfig()
    lora: LoraConfig | None = None
    """Null means full fine-tuning."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage; 0 shards nothing."""
    workers: int | None = Field(default=None, ge=1)
    """Ray Train workers; null means one a GPU (as many as share `batch_size` evenly), or one on all cores."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Rows or pairs a worker puts through the model at once; the rest of the batch is accumulated."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    max_length: int = Field(default=512, ge=16)
    """Tokens of prompt and completion together; longer rows are dead letters, never cut."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts from the last checkpoint after a worker died."""
    seed: int = 0

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
