"""Which tokens end an expansion, and which tokens of a candidate are trained on.

What is trained is what was drawn: ids are kept from sampling on, never made again from the text, because decoding is
not one to one. See docs/adr/0011-token-ids.md.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from aqe.config.sample import PromptConfig

#: Stands for an answer in a chat template.
_ANSWER = "ANSWER"


def end_ids(tokenizer: Any, generation_ends: int | Sequence[int] | None) -> frozenset[int]:
    """Every token that ends an expansion: the model's own (`eos_token_id` of its generation settings), the tokenizer's,
    and the one that ends an answer in its chat template, which some models name nowhere else.
    """
    ends = [generation_ends] if isinstance(generation_ends, int) else list(generation_ends or ())
    return frozenset(end for end in (*ends, tokenizer.eos_token_id, _turn_end(tokenizer)) if end is not None)


def taught_end(tokenizer: Any, prompt: PromptConfig) -> int:
    """The token that a model ends with by itself after this prompt: it is taught where a stop text ended a candidate.

    For a chat prompt the one that follows an answer in the chat template, else the tokenizer's end-of-text token.
    """
    end = _turn_end(tokenizer) if prompt.chat else None
    return int(tokenizer.eos_token_id if end is None else end)


def completion_ids(token_ids: Sequence[int], stop_at: int | None, end: int) -> list[int]:
    """What is trained on of a candidate (`token_ids`, `stop_at` of records.SAMPLES): the tokens that were drawn.

    Its end token is the one that it drew; one that was cut at the token limit has none, so that the model does not
    learn to stop there. Where a stop text ended it, its tokens up to there, then `end` (see `taught_end`): the
    model learns to end by itself.
    """
    return list(token_ids) if stop_at is None else [*token_ids[:stop_at], end]


@lru_cache(maxsize=8)
def _turn_end(tokenizer: Any) -> int | None:
    """The first special token after an answer in the chat template; None without a template, or such a token."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:
        # A template is a program: whatever it throws, it cannot be asked.
        return None
    after = tokenizer(text.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return next((int(i) for i in after if i in special), None)
