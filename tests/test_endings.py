"""Which token ends an expansion, as models of today have it: their tokenizer, settings and chat template differ."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aqe.config.sample import PromptConfig
from aqe.endings import completion_ids, end_ids, taught_end

MARKS = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "hello"]
TURNS = "{% for m in messages %}<start_of_turn>{{ m['role'] }} {{ m['content'] }}<end_of_turn> {% endfor %}"
PLAIN, CHAT = PromptConfig(name="plain", template="{query}"), PromptConfig(name="chat", template="{query}", chat=True)


def tokenizer(template: str | None) -> Any:
    core = Tokenizer(models.WordLevel({mark: i for i, mark in enumerate(MARKS)}, unk_token="hello"))
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", extra_special_tokens=MARKS[2:4]
    )
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "of_model", "ends", "chat"),
    [
        (TURNS, [0, 3], {0, 3}, 3),  # Gemma
        (TURNS, 0, {0, 3}, 3),  # a base model whose settings know nothing of its template
        (TURNS, None, {0, 3}, 3),
        ("{{ messages[-1]['content'] }}<eos>", [0], {0}, 0),  # Mistral
        ("{{ messages[-1]['content'] }}", [0], {0}, 0),  # the template writes no end
        ("{{ raise_exception('no assistant') }}", [0, 1], {0, 1}, 0),
    ],
)
def test_ends(template: str, of_model: Any, ends: set[int], chat: int) -> None:
    made = tokenizer(template)
    assert end_ids(made, of_model) == ends
    assert (taught_end(made, CHAT), taught_end(made, PLAIN)) == (chat, 0)


def test_a_base_model_ends_with_its_end_of_text() -> None:
    assert end_ids(tokenizer(None), None) == {0}
    assert taught_end(tokenizer(None), PLAIN) == 0


def test_what_is_trained_is_what_was_drawn() -> None:
    assert completion_ids([5, 6, 3], None, 0) == [5, 6, 3], "the end that it drew, not another"
    assert completion_ids([5, 6], None, 0) == [5, 6], "cut at the limit: no end"
    assert completion_ids([5, 6, 7, 8], 2, 0) == [5, 6, 0], "a stop text: the model's own end in its place"
    assert completion_ids([7], 0, 0) == [0]
