"""From AQE's configuration to the fields of TRL's SFTConfig and DPOConfig, and which of them are AQE's alone."""

from typing import Any, Literal

from aqe.config.align import AlignConfig, TrainConfig
from aqe.errors import ConfigError

Kind = Literal["rsft", "dpo"]

_TOKENS = "nothing: AQE tokenises and filters the rows itself, so that training sees what decoding saw"

#: Fields of TRL's classes that AQE sets -> what to set in their stead. `{stage}` is rsft or dpo.
OWNED = {
    "learning_rate": "align.{stage}.learning_rate",
    "num_train_epochs": "align.{stage}.epochs",
    "per_device_train_batch_size": "align.{stage}.batch_size and align.micro_batch_size",
    "gradient_accumulation_steps": "align.{stage}.batch_size and align.micro_batch_size",
    "warmup_steps": "align.{stage}.warmup_ratio",
    "warmup_ratio": "align.{stage}.warmup_ratio",
    "lr_scheduler_type": "align.{stage}.lr_scheduler",
    "max_grad_norm": "align.{stage}.max_grad_norm",
    "beta": "align.dpo.beta",
    "loss_weights": "align.dpo.loss_weights",
    "max_length": "align.max_length",
    "seed": "align.seed",
    "data_seed": "align.seed",
    "bf16": "align.precision",
    "fp16": "align.precision",
    "save_steps": "align.checkpoint_steps",
    "save_strategy": "align.checkpoint_steps",
    "save_only_model": "nothing: without the optimiser's state no run could resume",
    "logging_strategy": "align.{stage}.trl.logging_steps",
    "logging_first_step": "nothing: the first step is always logged",
    "deepspeed": "align.zero_stage",
    "fsdp": "align.zero_stage",
    "use_cpu": "nothing: GPUs are used where the Ray cluster has them",
    "output_dir": "nothing: the model lies in the stage's artifact",
    "resume_from_checkpoint": "nothing: the same command resumes by itself",
    "push_to_hub": "nothing: upload the finished model directory",
    "model_init_kwargs": "model.source and align.precision",
    "optim": "nothing: the optimiser is AdamW (adam_beta1, adam_beta2, adam_epsilon and weight_decay can be set)",
    "eval_strategy": "nothing: `aqe evaluate` evaluates",
    "precompute_ref_log_probs": "nothing: reference log-probabilities are computed once, before the first step",
    "sync_ref_model": "nothing: the reference is the frozen start model",
    "disable_dropout": "nothing: DPO trains without dropout, so that policy and reference begin as one",
    "truncation_mode": _TOKENS,
    "completion_only_loss": _TOKENS,
    "assistant_only_loss": _TOKENS,
    "packing": _TOKENS,
    "padding_free": _TOKENS,
    "dataset_kwargs": _TOKENS,
    "dataset_text_field": _TOKENS,
    "chat_template_path": _TOKENS,
    "eos_token": _TOKENS,
    "pad_token": _TOKENS,
    "remove_unused_columns": _TOKENS,
}


def stage_config(kind: Kind, config: AlignConfig) -> TrainConfig:
    """The part of `config` that belongs to one stage."""
    return config.rsft if kind == "rsft" else config.dpo


def batches(kind: Kind, config: AlignConfig, workers: int) -> tuple[int, int]:
    """(rows a worker puts through at once, accumulation steps) so that the global batch is exactly `batch_size`.

    Raises ConfigError when the batch cannot be shared out evenly.
    """
    batch = stage_config(kind, config).batch_size
    if batch % workers:
        fits = [n for n in range(1, batch + 1) if batch % n == 0 and n <= workers]
        raise ConfigError(
            f"align.{kind}.batch_size is {batch} and cannot be shared evenly by {workers} workers. "
            f"Set it to a multiple of {workers}, or align.workers to one of {', '.join(map(str, fits))}."
        )
    share = batch // workers
    micro = max(n for n in range(1, share + 1) if share % n == 0 and n <= config.micro_batch_size)
    return micro, share // micro


def arguments(
    kind: Kind,
    config: AlignConfig,
    *,
    output_dir: str,
    use_gpu: bool,
    micro: int,
    accumulation: int,
    deepspeed: dict[str, Any] | None,
) -> dict[str, Any]:
    """Keyword arguments of SFTConfig (rsft) or DPOConfig (dpo). `deepspeed` None trains in this process alone.

    More than six arguments, because what is not configuration is known to the worker alone.
    """
    stage = stage_config(kind, config)
    fields: dict[str, Any] = {
        # Logged at every step, so that the curves are whole; a user may thin them out.
        "logging_steps": 1,
        "report_to": "none",
        # TRL's default of True costs a second forward pass; worth it only where memory is short.
        "gradient_checkpointing": use_gpu,
        "dataloader_pin_memory": use_gpu,
        "disable_tqdm": True,
        # Of a mixture of experts DPO trains the preference alone, as of any model: TRL would add the router's loss.
        **({"router_aux_loss_coef": 0.0} if kind == "dpo" else {}),
        **stage.trl,
        "logging_first_step": True,
        "output_dir": output_dir,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": stage.epochs,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.lr_scheduler,
        # transformers 5 has no warmup_ratio: below 1, warmup_steps is the share of all steps, rounded up.
        "warmup_steps": min(stage.warmup_ratio, 1 - 1e-9),
        "max_grad_norm": stage.max_grad_norm,
        "bf16": config.uses_bfloat16(use_gpu),
        "seed": config.seed,
        "data_seed": config.seed,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_steps,
        # The rows are tokenised and measured already; TRL must not cut them.
        "max_length": None,
        # On a CPU, True is what makes accelerate see more than one process (with False, each worker trains alone).
        "use_cpu": not use_gpu,
        "deepspeed": deepspeed,
    }
    if kind == "rsft":
        return {**fields, "packing": False}
    return {
        **fields,
        "beta": config.dpo.beta,
        "loss_type": losses if isinstance(losses := config.dpo.loss_type, str) else list(losses),
        "loss_weights": None if (weights := config.dpo.loss_weights) is None else list(weights),
        "precompute_ref_log_probs": True,
        # Of LoRA too; models that drop by a function: see `worker.load_model`.
        "disable_dropout": True,
    }
