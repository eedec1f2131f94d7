"""Reasoning blocks are no part of an expansion, however a model marks them."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aqe.reasoning import Reasoning

ALPHABET = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def tokenizer(*special: str) -> Any:
    core = Tokenizer(models.BPE(dict(ALPHABET), []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>", extra_special_tokens=list(special))


def answer(made: Any, written: str, prompt: str = "who?") -> str:
    ids = made(written)["input_ids"]
    return Reasoning(made).answer(prompt, made.decode(ids, skip_special_tokens=True), ids)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("gold, a metal", "gold, a metal"),
        (" leading blank", " leading blank"),
        ("", ""),
        ("<think>hm</think> gold", " gold"),
        ("<think>\n\n</think>\n\ngold", "\n\ngold"),
        ("<think>so<think>deeper</think> gold", " gold"),
        ("<think>cut at the lim", ""),
        ("gold <think>or silver</think>ring", "gold ring"),
        ("<seed:think>hm</seed:think>gold", "gold"),
        ("a < b </thin> c", "a < b </thin> c"),
    ],
)
def test_blocks_that_are_text(written: str, expected: str) -> None:
    assert answer(tokenizer(), written) == expected


def test_a_block_that_the_prompt_opens() -> None:
    prompt = "<|user|>who?<|assistant|><think>\n"
    assert answer(tokenizer(), "hm</think> gold", prompt) == " gold"
    assert answer(tokenizer(), "hm, and hm", prompt) == ""


def test_blocks_whose_marks_are_special_tokens() -> None:
    made = tokenizer("[THINK]", "[/THINK]", "<x>")
    assert answer(made, "[THINK]hm[/THINK]gold<x> ring<e>") == "gold ring"
    assert answer(made, "[THINK]hm") == ""
    assert answer(made, "gold<x> ring") == "gold ring"


def test_channels() -> None:
    marks = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")
    made = tokenizer(*marks)
    thought = "<|channel|>analysis<|message|>the user wants<|end|><|start|>assistant"
    assert answer(made, thought + "<|channel|>final<|message|>gold ring<|return|>") == "gold ring"
    assert answer(made, thought) == ""
    assert answer(made, "<|channel|>final<|message|>gold") == "gold"
