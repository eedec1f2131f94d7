"""After training: the plain model directory (LoRA merged) and how far it went from its reference."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aqe.align.arguments import Kind
from aqe.align.tokens import IGNORED

MEASURED_ROWS = 64
"""Rows on which the divergence is measured: the first ones, so that it is the same for every run on the same data."""


def finish(
    kind: Kind, *, start: str, trained: str, out: str, tokens: str, bfloat16: bool, use_gpu: bool
) -> dict[str, float]:
    """Write the model directory `out` and return what `divergence` measures. Runs as one Ray task.

    A task of its own, because a training worker cannot do it: there, ZeRO-3 shards every model that is loaded.
    """
    import torch
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    model = _load_trained(start, trained, dtype)
    _save(model, start, Path(out))
    device = "cuda" if use_gpu else "cpu"
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
    rows = load_from_disk(tokens)
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
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(start).save_pretrained(part)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)


def divergence(kind: Kind, model: Any, reference: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """How far `model` went from `reference` on `rows` (of `tokens.encode`), all in nats.

    `kl_per_token`: exact KL(model || reference) over the vocabulary, mean over the completion tokens (dpo: of the
    chosen texts). `logp_change*`: log-probability of a whole completion minus the reference's, mean over the rows.
    """
    kl_sum, tokens = 0.0, 0
    changes: dict[str, list[float]] = {}
    for name, ids, length in _completions(kind, rows):
        kl, change = _compare(model, reference, ids, length)
        changes.setdefault(name, []).append(change)
        if name != "logp_change_rejected":
            kl_sum, tokens = kl_sum + kl, tokens + length
    return {"kl_per_token": kl_sum / tokens} | {name: sum(v) / len(v) for name, v in changes.items()}


def _completions(kind: Kind, rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[int], int]]:
    """(name of the statistic, ids of prompt and completion, tokens of the completion)."""
    for row in rows:
        if kind == "rsft":
            yield "logp_change", row["input_ids"], sum(label != IGNORED for label in row["labels"])
        else:
            for side in ("chosen", "rejected"):
                yield f"logp_change_{side}", row["prompt_ids"] + row[f"{side}_ids"], len(row[f"{side}_ids"])


def _compare(model: Any, reference: Any, ids: list[int], length: int) -> tuple[float, float]:
    """(sum of the exact KL, sum of log-probability differences) over the last `length` tokens of `ids`."""
    import torch

    with torch.no_grad():
        inputs = torch.tensor([ids], device=model.device)
        # Position i predicts token i + 1; only the completion's positions go through the vocabulary.
        p, q = (
            m(inputs, logits_to_keep=length + 1).logits[0, -length - 1 : -1].float().log_softmax(-1)
            for m in (model, reference)
        )
        targets = inputs[0, -length:, None]
        kl = (p.exp() * (p - q)).sum(dtype=torch.float64)
        change = (p - q).gather(-1, targets).sum(dtype=torch.float64)
    return float(kl), float(change)
