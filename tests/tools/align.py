"""A tiny random Llama with a tokenizer of its own, and preference rows for it."""

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aqe import records
from aqe.align.arguments import Kind
from aqe.align.export import export_model
from aqe.artifact import write_parquet

NOUNS = ("author", "river", "engine", "planet", "forest", "doctor", "castle", "violin")
_SIDES = ("chosen", "rejected")
HINTS = ("writes books", "flows to the sea", "burns fuel", "circles a star", "has trees", "heals", "has walls", "sings")


@cache
def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer, the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*NOUNS, *HINTS, "to answer this question we need to know"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def make_model(path: Path, seed: int = 0) -> Path:
    """Save a random two-layer Llama (hidden 32, float32) and its tokenizer at `path`."""
    fast = make_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=fast.eos_token_id,
            bos_token_id=None,
            pad_token_id=None,
        )
    )
    # The usual 0.02 makes so small a model all but deaf to its input.
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


def with_ids(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the token ids of its texts, an end token where they are finished."""
    fast, ids = make_tokenizer(), {}
    for name, finished in (("prompt", None), ("completion", "finished"), *((s, f"{s}_finished") for s in _SIDES)):
        if name in row:
            ended = finished is not None and row[finished]
            ids[f"{name}_ids"] = [*fast(row[name] or "")["input_ids"], *([fast.eos_token_id] if ended else [])]
    return row | ids


def rsft_rows(count: int) -> list[dict[str, Any]]:
    return [with_ids(row) for row in _rsft_rows(count)]


def dpo_rows(count: int) -> list[dict[str, Any]]:
    return [with_ids(row) for row in _dpo_rows(count)]


def _rsft_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "qid": str(i),
            "prompt": f"what {HINTS[i % 8]}? we need to know",
            "completion": f" {NOUNS[i % 8]} {HINTS[(i // 8) % 8]}",
            "finished": i % 3 != 0,
            "gold_rank": 1,
            "plain_rank": 9,
        }
        for i in range(count)
    ]


def _dpo_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "qid": str(i),
            "prompt": f"what {HINTS[i % 8]}? we need to know",
            "chosen": f" {NOUNS[i % 8]}",
            "rejected": f" {HINTS[(i + 3) % 8]} {i}",
            "chosen_finished": i % 3 != 0,
            "rejected_finished": i % 4 != 0,
            "chosen_rank": 1,
            "rejected_rank": 50,
        }
        for i in range(count)
    ]


def write_rows(kind: Kind, count: int, path: Path) -> Path:
    rows, schema = (rsft_rows(count), records.RSFT) if kind == "rsft" else (dpo_rows(count), records.DPO)
    table: pa.Table = records.table(rows, schema)
    write_parquet(table, path)
    return path


def export(kind: Kind, start: Path, directory: Path, logps: list[float], name: str = "model") -> dict[str, float]:
    """Export `directory`/trained, trained on `directory`/tokens.arrow, to `directory`/`name`, as a stage on a CPU does."""
    return export_model(
        kind,
        start=str(start),
        trained=str(directory / "trained"),
        out=str(directory / name),
        tokens=str(directory / "tokens.arrow"),
        logps=logps,
        bfloat16=False,
        use_gpu=False,
    )
