"""What a model thinks before it answers, told apart from the answer.

A reasoning block is no expansion: its words are about the task. `enable_thinking: false` (see PromptConfig.chat_kwargs)
keeps most models from writing one; what comes nevertheless is cut off and counted.
"""

import re
from collections.abc import Sequence
from typing import Any

#: Beginning and end of a block, as models of today write them: Qwen3, SmolLM3, DeepSeek R1 and GLM; Magistral; Seed;
#: Command A; EXAONE.
BLOCKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thought>", "</thought>"),
)
#: gpt-oss: messages on channels, of which only the last one is for the reader.
CHANNEL, FINAL = "<|channel|>", re.compile(r"<\|channel\|>final.*?<\|message\|>", re.DOTALL)


def special_texts(tokenizer: Any) -> list[str]:
    """The tokenizer's special tokens as texts, those that only its vocabulary names too; longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*map(str, tokenizer.all_special_tokens), *added}, key=lambda text: (-len(text), text))


def opened(prompt: str) -> bool:
    """The prompt itself ends with the beginning of a reasoning block."""
    return prompt.rstrip().endswith(tuple(begin for begin, _ in BLOCKS))


class Reasoning:
    """Cuts reasoning blocks out of what one model writes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = special_texts(tokenizer)
        markers = {CHANNEL, *(marker for block in BLOCKS for marker in block)}
        # Markers that are special tokens do not show in the decoded text.
        self._hidden = frozenset(tokenizer.convert_tokens_to_ids([text for text in special if text in markers]))
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def answer(self, prompt: str, raw: str, token_ids: Sequence[int]) -> str:
        """`raw` without its reasoning blocks; `raw` itself where it holds none.

        `token_ids` are the tokens that `raw` was decoded from. A block that was not ended takes all that follows it.
        """
        if self._hidden.isdisjoint(token_ids):
            return _without_blocks(raw, opened(prompt))
        text = str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))
        if CHANNEL in text:
            *_, last = [None, *FINAL.finditer(text)]
            return "" if last is None else self._special.sub("", text[last.end() :])
        return self._special.sub("", _without_blocks(text, opened(prompt)))


def _without_blocks(text: str, inside: bool) -> str:
    for begin, end in BLOCKS:
        if inside and end in text:
            text, inside = text.split(end, 1)[1], False
        text = re.sub(re.escape(begin) + ".*?(?:" + re.escape(end) + r"|\Z)", "", text, flags=re.DOTALL)
    return "" if inside else text
