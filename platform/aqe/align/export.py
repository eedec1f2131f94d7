"""After training: the plain model directory (LoRA merged) and how far it went from its reference."""

from pathlib import Path
from typing import Any

from aqe.align.arguments import Kind
from aqe.align.divergence import MEASURED_ROWS, divergence
from aqe.align.tokens import load_tokens
from aqe.storage import put


def export_model(
    kind: Kind, *, start: str, trained: str, out: str, tokens: str, bfloat16: bool, use_gpu: bool
) -> dict[str, float]:
    """Write the model directory `out` and return what `divergence` measures. Runs as one Ray task.

    A task of its own, because a training worker cannot do it: there, ZeRO-3 shards every model that is loaded.
    More than six arguments: what a task on another machine has to be told.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    model = _load_trained(start, trained, dtype)
    _save(model, start, Path(out))
    device = "cuda" if use_gpu else "cpu"
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
    rows = load_tokens(tokens)
    rows = rows.select(range(min(MEASURED_ROWS, len(rows)))).to_list()
    return divergence(kind, model.to(device), reference.to(device), rows)


def _load_trained(start: str, trained: str, dtype: Any) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not Path(trained, "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(trained, dtype=dtype)
    import torch

    # Merged in float32, cast once.
    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    return PeftModel.from_pretrained(base, trained).merge_and_unload(safe_merge=True).to(dtype)


def _save(model: Any, start: str, out: Path) -> None:
    """Weights of `model`; tokenizer, generation settings and the rest of the configuration as in the start model."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    # TRL writes the trainer's padding token into the configuration. Where that is the end-of-text token, the next
    # stage's embedding would take it for padding and not learn it.
    original = AutoConfig.from_pretrained(start)
    model.config.pad_token_id = original.pad_token_id
    model.config.use_cache = original.use_cache
    if Path(start, "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)

    def write(part: Path) -> None:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)

    put(out, write)
