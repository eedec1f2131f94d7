"""Whether TRL takes the alignment settings: asked before any compute is spent. Needs no GPU and no model."""

import difflib
import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from aqe.align.arguments import OWNED, Kind, arguments, batches, stage_config
from aqe.config.align import AlignConfig, LoraConfig
from aqe.errors import ConfigError

#: TRL 1.16 looks at these only when the loss is computed.
DPO_LOSSES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
SFT_LOSSES = ["nll", "dft"]


def check_align(config: AlignConfig) -> None:
    """Raise ConfigError for settings that TRL would refuse, or that AQE sets itself, naming what to set instead."""
    kinds: tuple[Kind, ...] = ("rsft", "dpo")
    for kind in kinds:
        _check_fields(kind, config)
        _check_loss(kind, config)
        if config.workers is not None:
            batches(kind, config, config.workers)
        _check_values(kind, config)
    if config.lora is not None and config.lora.dropout and config.stages == ("dpo",):
        raise ConfigError(
            f"align.lora.dropout is {config.lora.dropout}, but align.stages is [dpo], and DPO trains without dropout, "
            "so that policy and reference begin as one. Set align.lora.dropout to 0."
        )


def check_lora(lora: LoraConfig, model: Path) -> None:
    """Raise ConfigError when PEFT cannot put `lora` onto the model in directory `model`, or a name fits no module.

    Needs its config.json alone: the model is built without weights.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from aqe.align.trainers import peft_config

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    matrices = {
        name.rpartition(".")[2]
        for name, part in shell.named_modules()
        if isinstance(getattr(part, "weight", None), torch.Tensor) and part.weight.ndim == 2
    }
    have = f"The model in {model} has {', '.join(sorted(matrices))}."
    try:
        with warnings.catch_warnings():
            # Training says them again.
            warnings.simplefilter("ignore")
            adapted = get_peft_model(shell, peft_config(lora), low_cpu_mem_usage=True)
    except (ValueError, re.error) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"align.lora: PEFT cannot adapt the model with target_modules {lora.target_modules!r}: {why} {have}"
        ) from error
    # Without those that PEFT has taken for a part of fused experts.
    names = adapted.peft_config["default"].target_modules
    found = adapted.base_model.targeted_module_names
    for name in () if isinstance(lora.target_modules, str) else sorted(names):
        if not any(f".{module}".endswith(f".{name}") for module in found):
            raise ConfigError(f"align.lora.target_modules names {name!r}, which fits no module. {have}")


def _check_fields(kind: Kind, config: AlignConfig) -> None:
    from trl import DPOConfig, SFTConfig

    trl_class = SFTConfig if kind == "rsft" else DPOConfig
    known = {field.name for field in fields(trl_class) if field.init}
    for name in stage_config(kind, config).trl:
        if name in OWNED:
            instead = OWNED[name].format(stage=kind)
            raise ConfigError(f"align.{kind}.trl.{name}: AQE sets this field of {trl_class.__name__}. Set {instead}.")
        if kind == "dpo" and name == "loss_type":
            raise ConfigError("align.dpo.trl.loss_type: AQE sets this field of DPOConfig. Set align.dpo.loss_type.")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known - set(OWNED)), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"align.{kind}.trl.{name}: TRL's {trl_class.__name__} has no such field.{hint}")


def _check_loss(kind: Kind, config: AlignConfig) -> None:
    losses = (config.dpo.loss_type,) if isinstance(config.dpo.loss_type, str) else config.dpo.loss_type
    unknown = [loss for loss in losses if loss not in DPO_LOSSES]
    if kind == "dpo" and (unknown or not losses):
        raise ConfigError(
            f"align.dpo.loss_type has {', '.join(unknown) or 'no loss'}; it can be one, or a list, of "
            f"{', '.join(DPO_LOSSES)}."
        )
    loss = config.rsft.trl.get("loss_type", "nll")
    if kind == "rsft" and loss not in SFT_LOSSES:
        raise ConfigError(f"align.rsft.trl.loss_type is {loss!r}; it can be {', '.join(SFT_LOSSES)}.")
    smoothing = config.dpo.trl.get("label_smoothing", 0.0)
    if kind == "dpo" and "exo_pair" in losses and not smoothing:
        raise ConfigError("align.dpo.loss_type exo_pair needs align.dpo.trl.label_smoothing above 0 (its paper: 1e-3).")


def _check_values(kind: Kind, config: AlignConfig) -> None:
    """Let TRL's own class check the values, as for a CPU: no GPU is looked for."""
    from aqe.align.trainers import peft_config, trl_config

    settings: dict[str, Any] = arguments(
        kind, config, output_dir="unused", use_gpu=False, micro=1, accumulation=1, deepspeed=None
    )
    try:
        trl_config(kind, {**settings, "bf16": False})
        if config.lora is not None:
            peft_config(config.lora)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"align.{kind}: TRL does not take these settings: {error}") from error
