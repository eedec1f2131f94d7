"""After training: the plain model directory (LoRA merged) and how far it went from its reference."""

from pathlib import Path
from statistics import fmean
from typing import Any

from aqe.align.arguments import Kind
from aqe.align.divergence import COMPARED_ROWS, MEASURED_ROWS, completion_logps, divergence
from aqe.align.tokens import load_tokens
from aqe.artifact import verify
from aqe.errors import ArtifactError
from aqe.storage import put

#: Nats a token by which an exported model may differ from the one that was trained, mean over some completions. Merging
#: an adapter of rank 16 into a model of 135 M weights moved one short completion of eight by 6e-4 in float32, and in
#: bfloat16, where logits around 30 have steps of 0.125, by 0.2. Another model is off by more.
TOLERANCE = {"float32": 5e-3, "bfloat16": 0.25}


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

    `logps` are `completion_logps` of the model that was trained, on the first COMPARED_ROWS rows: what was written is
    read again and compared. Raises ArtifactError, and leaves nothing at `out`, where it is another model.
    Runs as one Ray task of its own, because a training worker cannot do it: there, ZeRO-3 shards every model that is
    loaded. More than six arguments: what a task on another machine has to be told.
    """
    import torch
    from transformers import AutoModelForCausalLM

    verify(Path(start), patient=True)
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
        written = completion_logps(kind, exported, rows[:COMPARED_ROWS])
        difference = fmean(abs(a - b) for a, b in zip(logps, written, strict=True))
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
    """The model that was trained, an adapter merged, with the configuration of the start model.

    Training writes its own into it: no dropout in DPO, and the trainer's padding token. Where that is the end-of-text
    token, the next stage's embedding would take it for padding and not learn it.
    """
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    if not Path(trained, "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(trained, config=AutoConfig.from_pretrained(start), dtype=dtype)
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
    """`model`, with the tokenizer and the generation settings of the start model."""
    from transformers import AutoTokenizer, GenerationConfig

    if Path(start, "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(start)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(start).save_pretrained(out)
