"""After training: the plain model directory (LoRA merged) and how far it went from its reference."""

from pathlib import Path
from typing import Any

from aqe.align.arguments import Kind
from aqe.align.divergence import MEASURED_ROWS, completion_logps, divergence
from aqe.align.tokens import load_tokens
from aqe.align.worker import noise
from aqe.errors import ArtifactError
from aqe.storage import put

#: Nats a token by which an exported model may differ from the one that was trained. In float32 only the order of sums
#: differs; in bfloat16 merging an adapter rounds every weight to 8 bits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def export_model(
    kind: Kind,
    *,
    start: str,
    trained: str,
    out: str,
    tokens: str,
    logps: list[float],
    bfloat16: bool,
    use_gpu: bool,
) -> dict[str, float]:
    """Write the model directory `out`; returns what `divergence` measures, and `export_difference` in nats a token.

    `logps` are `completion_logps` of the model that was trained, on the first rows: what was written is read again and
    compared. Raises ArtifactError, and leaves nothing at `out`, where it is another model.
    Runs as one Ray task of its own, because a training worker cannot do it: there, ZeRO-3 shards every model that is
    loaded. More than six arguments: what a task on another machine has to be told.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    device = "cuda" if use_gpu else "cpu"
    rows = load_tokens(tokens)
    rows = rows.select(range(min(MEASURED_ROWS, len(rows)))).to_list()
    exported: Any = None
    difference = 0.0

    def write(part: Path) -> None:
        nonlocal exported, difference
        _save(_load_trained(start, trained, dtype), start, part)
        exported = AutoModelForCausalLM.from_pretrained(part, dtype=dtype).to(device)
        written = completion_logps(kind, exported, rows[: len(logps)])
        difference = max(abs(a - b) for a, b in zip(logps, written, strict=False))
        if not difference <= TOLERANCE["bfloat16" if bfloat16 else "float32"]:
            raise ArtifactError(
                f"{out}: the model that was written is not the one that was trained: log-probabilities of the rows it "
                f"was trained on differ by {difference:.3g} nats a token. The weights in {trained} are kept; nothing "
                "was exported. Please report this with the model's config.json."
            )

    put(Path(out), write)
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=dtype).to(device)
    return {**divergence(kind, exported, reference, rows), "export_difference": difference}


def _load_trained(start: str, trained: str, dtype: Any) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not Path(trained, "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(trained, dtype=dtype)
    import torch

    # Merged in float32, cast once.
    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    _untie(base, Path(trained))
    return PeftModel.from_pretrained(base, trained).merge_and_unload(safe_merge=True).to(dtype)


def _untie(base: Any, adapter: Path) -> None:
    """Part a model's embedding from its output layer where an adapter changes one of them.

    Where they share their weights, merging would change both: another model than was trained.
    """
    import torch
    from safetensors import safe_open

    ends = base.get_input_embeddings(), base.get_output_embeddings()
    if ends[1] is None or ends[0].weight is not ends[1].weight:
        return
    names = [name for name, module in base.named_modules() if module in ends]
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        adapted = {key for key in weights.keys() if any(f".{name}." in key for name in names)}  # noqa: SIM118
    if adapted:
        ends[1].weight = torch.nn.Parameter(ends[1].weight.detach().clone())
        base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False


def _save(model: Any, start: str, out: Path) -> None:
    """Weights of `model`; tokenizer, generation settings and the rest of the configuration as in the start model."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    # TRL writes the trainer's padding token into the configuration. Where that is the end-of-text token, the next
    # stage's embedding would take it for padding and not learn it.
    original = AutoConfig.from_pretrained(start)
    model.config.pad_token_id = original.pad_token_id
    model.config.use_cache = original.use_cache
    # DPO trains without it.
    for name in noise(original):
        setattr(model.config, name, getattr(original, name))
    if Path(start, "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(start)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(start).save_pretrained(out)
