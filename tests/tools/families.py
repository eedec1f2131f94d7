"""A tiny random model of each family, in a directory as its authors publish one.

Tokenizer type, special tokens, end tokens, chat template, tied weights and windows are those of the real models; words
and weights are not.
"""

import functools
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import SentencePieceExtractor

TEXT = (
    "the river flows through the forest to the sea, and a bridge of old stone leads over it.\n"
    "who built the castle on the hill? its walls are 12 metres high and 340 years old.\n"
    "A novelist writes long stories about people; a poet's words are few, but he'll choose them well.\n"
    "violins, engines and planets: what do they have in common? They turn, they sing, they're far away.\n"
    "Question: what is a ramble? Answer: to move about on foot without aim or hurry.\n"
    "The café in Zürich opens at 7:30; naïve visitors pay 25 % more!\n"
)
WINDOW = 12
"""Tokens that a layer with a window sees: fewer than a prompt has."""
SHORT_REGEX = r"'\p{L}{1,2}|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: A word ends where a capital letter begins another.
CASED_REGEX = (
    r"[^\r\n\p{L}\p{N}]?\p{Lu}*\p{Ll}+|[^\r\n\p{L}\p{N}]?\p{Lu}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = r"""
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
QWEN2 = (
    r"""
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helper.<|im_end|>\n' }}{% endif %}"""
    + CHATML
)
QWEN3 = (
    CHATML
    + r"""
{%- if add_generation_prompt and enable_thinking is defined and not enable_thinking %}
{{- '<think>\n\n</think>\n\n' }}{% endif %}"""
)
SMOLLM3 = r"""
{%- set think = enable_thinking is not defined or enable_thinking %}
{{- '<|im_start|>system\nReasoning Mode: ' + ('/think' if think else '/no_think') + '\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}{{ '<|im_end|>\n' }}
{%- for m in messages if m.role != 'system' %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ('' if think else '<think>\n\n</think>\n') }}{% endif %}"""
LLAMA = r"""
{{- bos_token }}{% for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA2 = r"""
{{- bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
{{- m.content | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
#: The system message becomes the beginning of the user's.
GEMMA3 = r"""
{{- bos_token }}{% set told = namespace(first='') %}{% for m in messages %}
{%- if m.role == 'system' %}{% set told.first = m.content + '\n\n' %}{% else %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + told.first }}
{{- m.content | trim + '<end_of_turn>\n' }}{% set told.first = '' %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = r"""
{{- bos_token }}{% for m in messages %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
PHI3 = r"""
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}"""
OLMO2 = r"""
{{- bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}
{{- eos_token if m.role == 'assistant' else '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
GRANITE = r"""
{%- for m in messages %}
{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""
HARMONY = r"""
{{- '<|start|>system<|message|>Reasoning: low\n# Valid channels: analysis, final.<|end|>' }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ '<|start|>developer<|message|># Instructions\n\n' + m.content + '<|end|>' }}
{%- elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""


@dataclass(frozen=True)
class Words:
    """A tokenizer and how it is published."""

    kind: str
    """`bytes` (BPE over bytes), `sentencepiece`, or `model`: sentencepiece without a tokenizer.json."""
    special: tuple[str, ...]
    """Special tokens; behind the vocabulary, unless `first`."""
    config: Mapping[str, Any]
    """tokenizer_config.json."""
    first: bool = False
    split: Any = None
    """Pre-tokenizer; None where the tokenizer's class has its own."""
    bos: str | None = None
    """Put before a text by tokenizer.json itself."""
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""
    prefix: bool = True
    """sentencepiece puts a blank before a text."""


@dataclass(frozen=True)
class Family:
    """What makes a model of this family."""

    model_type: str
    words: Words
    ends: tuple[str, ...]
    """`eos_token_id` of generation_config.json."""
    config: Mapping[str, Any]
    """Of config.json; SIZE is taken where it says nothing else."""
    template: str | None = None
    turn: str | None = None
    """Token that ends an answer in the chat template."""
    system: bool = True
    """The chat template takes a system message."""
    window: bool = False
    often: float = 1.7
    """Scale of the end tokens' rows: a model of so few weights shall end by itself now and then."""
    not_vllm: str | None = None
    """Part of what vLLM's CPU build says, where it cannot take this family."""


def _gpt2(special: str = "<|endoftext|>", **config: Any) -> dict[str, Any]:
    own = {"tokenizer_class": "GPT2Tokenizer", "bos_token": special, "eos_token": special, "unk_token": special}
    return {**own, "add_prefix_space": False, **config}


def _isolated(regex: str) -> Any:
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "pad_token": _IM[0]}
_S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_LLAMA2 = {"tokenizer_class": "LlamaTokenizer", **_S, "add_bos_token": True, "add_eos_token": False}
_GEMMA = Words(
    "sentencepiece",
    ("<mask>", "<start_of_turn>", "<end_of_turn>"),
    {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    | {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False},
    first=True,
    bos="<bos>",
    prefix=False,
)
_ALTERNATE = ["sliding_attention", "full_attention"]
_DROPOUT = 0.1

# Heads of 32: vLLM's attention on a CPU takes no smaller ones.
SIZE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2}
GROUPED = {"intermediate_size": 96, "num_key_value_heads": 1, "max_position_embeddings": 256}
HEADS = GROUPED | {"head_dim": 32}

FAMILIES = {
    "llama": Family(
        "llama",
        Words(
            "bytes",
            (
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eom_id|>",
                "<|eot_id|>",
            ),
            _FAST | {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
            split=_isolated(SHORT_REGEX),
            bos="<|begin_of_text|>",
        ),
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        GROUPED
        | {
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
            | {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
        },
        LLAMA,
        "<|eot_id|>",
    ),
    "qwen2": Family(
        "qwen2",
        Words("bytes", _IM, _QWEN),
        ("<|im_end|>", "<|endoftext|>"),
        GROUPED | {"tie_word_embeddings": True},
        QWEN2,
        "<|im_end|>",
    ),
    "qwen3": Family(
        "qwen3",
        Words("bytes", _IM, _QWEN, plain=("<think>", "</think>")),
        ("<|im_end|>", "<|endoftext|>"),
        HEADS | {"tie_word_embeddings": True},
        QWEN3,
        "<|im_end|>",
    ),
    "gemma2": Family(
        "gemma2",
        _GEMMA,
        ("<eos>", "<end_of_turn>"),
        HEADS
        | {
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "layer_types": _ALTERNATE,
            "query_pre_attn_scalar": 32,
        }
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        GEMMA2,
        "<end_of_turn>",
        system=False,
        window=True,
        often=1.5,
    ),
    "gemma3": Family(
        "gemma3_text",
        _GEMMA,
        ("<eos>", "<end_of_turn>"),
        HEADS
        | {"tie_word_embeddings": True, "sliding_window": WINDOW, "query_pre_attn_scalar": 32, "num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", *_ALTERNATE]},
        GEMMA3,
        "<end_of_turn>",
        window=True,
    ),
    "mistral": Family(
        "mistral",
        Words("model", (), _LLAMA2),
        ("</s>",),
        HEADS | {"sliding_window": WINDOW},
        MISTRAL,
        "</s>",
        system=False,
        window=True,
    ),
    "phi3": Family(
        "phi3",
        Words(
            "sentencepiece",
            ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"),
            {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|endoftext|>"}
            | {"pad_token": "<|endoftext|>", "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False},
        ),
        ("<|endoftext|>", "<|assistant|>", "<|end|>"),
        GROUPED | {"sliding_window": WINDOW},
        PHI3,
        "<|end|>",
        window=True,
    ),
    "gpt2": Family(
        "gpt2",
        Words("bytes", ("<|endoftext|>",), _gpt2()),
        ("<|endoftext|>",),
        {"n_positions": 256} | {"resid_pdrop": _DROPOUT, "embd_pdrop": _DROPOUT, "attn_pdrop": _DROPOUT},
        often=2.0,
    ),
    "opt": Family(
        "opt",
        Words(
            "bytes",
            ("<s>", "<pad>", "</s>", "<unk>"),
            _gpt2("</s>", pad_token="<pad>", add_bos_token=True),
            first=True,
        ),
        ("</s>",),
        {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.2, "dropout": _DROPOUT},
    ),
    "falcon": Family(
        "falcon",
        Words(
            "bytes",
            (">>TITLE<<", ">>ABSTRACT<<", ">>QUESTION<<", "<|endoftext|>"),
            _FAST | {"eos_token": "<|endoftext|>"},
            first=True,
            split=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Punctuation("contiguous"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                    pre_tokenizers.Digits(),
                    pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
                ]
            ),
        ),
        ("<|endoftext|>",),
        {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "alibi": False, "bias": False},
        often=1.5,
    ),
    "olmo2": Family(
        "olmo2",
        Words(
            "bytes",
            ("<|endoftext|>", "<|pad|>"),
            _gpt2(pad_token="<|pad|>"),
            split=_isolated(SHORT_REGEX),
        ),
        ("<|endoftext|>",),
        GROUPED | {"num_key_value_heads": 2, "tie_word_embeddings": False},
        OLMO2,
        "<|endoftext|>",
        often=2.1,
    ),
    "granite": Family(
        "granite",
        Words(
            "bytes",
            ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
            _gpt2("<|end_of_text|>", pad_token="<|end_of_text|>"),
            first=True,
            split=pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
        ("<|end_of_text|>",),
        GROUPED
        | {"tie_word_embeddings": True, "embedding_multiplier": 1.5, "attention_multiplier": 0.1}
        | {"residual_multiplier": 1.4, "logits_scaling": 0.8},
        GRANITE,
        "<|end_of_text|>",
    ),
    "smollm3": Family(
        "smollm3",
        Words(
            "bytes",
            ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
            _FAST | {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
            split=_isolated(SHORT_REGEX),
            plain=("<think>", "</think>"),
        ),
        ("<|im_end|>",),
        # Every fourth layer has no positions.
        GROUPED | {"tie_word_embeddings": True, "num_hidden_layers": 4, "no_rope_layer_interval": 4},
        SMOLLM3,
        "<|im_end|>",
    ),
    "gpt_oss": Family(
        "gpt_oss",
        Words(
            "bytes",
            (
                "<|startoftext|>",
                "<|endoftext|>",
                "<|return|>",
                "<|channel|>",
                "<|start|>",
                "<|end|>",
                "<|message|>",
                "<|call|>",
            ),
            _FAST | {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
            split=_isolated(CASED_REGEX),
        ),
        ("<|return|>", "<|endoftext|>", "<|call|>"),
        HEADS
        | {"sliding_window": WINDOW, "layer_types": _ALTERNATE, "num_local_experts": 4, "num_experts_per_tok": 2}
        | {
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 32.0, "truncate": False}
            | {"beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 8}
        },
        HARMONY,
        "<|return|>",
        window=True,
        # Its experts are made for bfloat16 alone.
        not_vllm="expected scalar type BFloat16 but found Float",
    ),
    "mixtral": Family(
        "mixtral",
        Words("sentencepiece", (), _LLAMA2, bos="<s>"),
        ("</s>",),
        HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        MISTRAL,
        "</s>",
        system=False,
    ),
}
FAST = ("gemma3", "mistral", "qwen3")
"""Those that differ most: all others are for the slow suite."""
EACH = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in FAMILIES]


def _byte_bpe(words: Words, out: Path) -> None:
    """tokenizer.json, or for OPT the two files that it is published with."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = words.split or pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    # Trained without a line as a word: what a newline ends is a token of its own.
    core.train_from_iterator(
        TEXT.splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=380,
            special_tokens=list(words.special) if words.first else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if words.config.get("add_bos_token"):
        core.model.save(str(out))
        return
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in words.special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in words.plain])
    core.post_processor = _before(core, words.bos) if words.bos else processors.ByteLevel(trim_offsets=False)
    core.save(str(out / "tokenizer.json"))


def _before(core: Any, bos: str) -> Any:
    first = [(bos, core.token_to_id(bos))]
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=first)


def _sentencepiece(words: Words, out: Path) -> None:
    """tokenizer.model, and the tokenizer.json that such models are published with beside it."""
    trained = io.BytesIO()
    names: dict[str, Any] = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    if words.first:
        names = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    pieces = {f"{name}_piece": words.config[f"{name}_token"] for name in ("unk", "bos", "pad")} if words.first else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=380,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=words.prefix,
        split_digits=True,
        control_symbols=list(words.special) if words.first else [],
        eos_piece="<eos>" if words.first else "</s>",
        minloglevel=2,
        **names,
        **pieces,
    )
    (out / "tokenizer.model").write_bytes(trained.getvalue())
    if words.kind == "model":
        return
    found = SentencePieceExtractor(str(out / "tokenizer.model")).extract(models.BPE)
    unknown = words.config["unk_token"]
    core = Tokenizer(models.BPE(found["vocab"], found["merges"], fuse_unk=True, byte_fallback=True, unk_token=unknown))
    blank = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank]) if words.prefix else blank
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if words.prefix else steps)
    if not words.prefix:
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    marks = [words.config[f"{name}_token"] for name in ("unk", "bos", "eos", "pad") if f"{name}_token" in words.config]
    # Phi-3's own tokens swallow what blank follows them.
    tokens = [AddedToken(t, special=True, normalized=False, rstrip=not words.first) for t in words.special]
    core.add_special_tokens(
        [AddedToken(m, special=True, normalized=False) for m in dict.fromkeys(marks) if m not in words.special] + tokens
    )
    if words.bos:
        core.post_processor = _before(core, words.bos)
    core.save(str(out / "tokenizer.json"))


@functools.cache
def make_family(name: str, root: Path) -> Path:
    """Write the model directory `root`/`name`, once in a process; returns it."""
    family, out = FAMILIES[name], root / name
    out.mkdir(parents=True, exist_ok=True)
    words = family.words
    (_byte_bpe if words.kind == "bytes" else _sentencepiece)(words, out)
    (out / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 256, **words.config}))
    if family.template is not None:
        (out / "chat_template.jinja").write_text(family.template.lstrip("\n"))
    (out / "config.json").write_text(json.dumps({"model_type": family.model_type}))
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = {key: getattr(tokenizer, f"{key}_id") for key in ("bos_token", "eos_token", "pad_token")}
    named = {f"{key}_id": number for key, number in ids.items()}
    torch.manual_seed(sum(map(ord, name)))
    config = AutoConfig.for_model(family.model_type, vocab_size=len(tokenizer), **{**SIZE, **named, **family.config})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ends = tokenizer.convert_tokens_to_ids(list(family.ends))
    with torch.no_grad():
        if family.model_type.startswith("gemma"):
            # What layers add counts for more than the token itself: with tied weights it would only be repeated.
            for weight in (w for n, w in model.named_parameters() if "post_" in n):
                weight.fill_(4.0)
        weight = model.get_output_embeddings().weight
        if config.pad_token_id is not None:
            # The library starts with zeros there; with tied weights that can be an end token, which is never drawn.
            weight[config.pad_token_id].normal_(std=0.2)
        weight[ends] *= family.often
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.save_pretrained(out)
    return out


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as these compute slower with several threads, and far slower where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def families_root(factory: pytest.TempPathFactory) -> Path:
    """Where the models of a test session lie."""
    return factory.getbasetemp() / "families"
