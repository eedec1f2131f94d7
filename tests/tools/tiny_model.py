"""Models of a few thousand random weights over printable ASCII, one token a character: text and tokens are the same."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
END = len(CHARACTERS)
SIZE: dict[str, Any] = {"vocab_size": END + 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "initializer_range": 0.3}
LLAMA = SIZE | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}


def tokenizer() -> Any:
    """One token for each character."""
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)} | {"<end>": END}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>", unk_token="<end>")


def save(path: Path, kind: str = "llama", **changes: Any) -> Path:
    """Write a seeded random model of `kind` (llama, mistral: with a window of 8 tokens, gpt2: absolute positions)."""
    torch.manual_seed(0)
    model: Any
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**LLAMA | changes))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**LLAMA | {"sliding_window": 8} | changes))
    else:
        model = GPT2LMHeadModel(GPT2Config(**SIZE | {"n_positions": 256} | changes))
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
