"""Named prompts, and how a query becomes the text that a model continues, and that text its tokens."""

import re
import unicodedata
from pathlib import Path
from typing import Any

from aqe.config.base import nearest
from aqe.config.sample import QUERY, PromptConfig
from aqe.errors import ConfigError, InputError
from aqe.reasoning import BLOCKS, special_texts

DEFINITION_EXAMPLES = """\
Definition: one who writes long stories about people and events that are made up
Words: novelist, author, writer of fiction

Definition: to move about on foot without aim or hurry
Words: stroll, wander, ramble, saunter

Definition: having little or no light
Words: dark, dim, gloomy, obscure

"""

_PASSAGE_EXAMPLES = """\
Question: what is the tallest mountain in africa?
Passage: Mount Kilimanjaro, a dormant volcano in Tanzania, is the highest mountain in Africa at 5,895 metres

Question: who painted the ceiling of the sistine chapel?
Passage: Michelangelo painted the ceiling of the Sistine Chapel in the Vatican for Pope Julius II

"""

_QUESTION_EXAMPLES = """\
Example 1:
Document: Lighthouse. A lighthouse warns ships of rocks and shallow water. Its lamp stands on a tower, and a lens \
bends the light into one beam, which can be seen from more than thirty kilometres away.
Relevant Query: how far out at sea is the light of a lighthouse visible

Example 2:
Document: Marie Curie. In 1911 she received a second Nobel Prize, in chemistry, for the discovery of polonium and \
radium. She remains the only person who was honoured in two different sciences.
Relevant Query: who won the nobel prize in both physics and chemistry

Example 3:
Document: Sourdough. The dough rises without bought yeast. A starter of flour and water catches wild yeasts and \
bacteria from the air; it has to be fed every day, and it gives the loaf its acid taste.
Relevant Query: why does some bread taste sour

Example 4:
Document: {passage}
Relevant Query:"""

#: A query that no template has in itself.
_PROBE = "what is a zyzzyva"

PROMPTS = {
    prompt.name: prompt
    for prompt in (
        # EAR (arXiv 2305.17080), whose set-up AQE builds on.
        PromptConfig(
            name="ear",
            template="{query} ? To answer this question, we need to know",
            strip_question_mark=True,
        ),
        PromptConfig(
            name="chat_passage",
            chat=True,
            system="Write a short passage that answers the question.",
            template="{query}",
        ),
        PromptConfig(
            name="passage",
            template="Question: {query}?\nPassage:",
            stop=("\n",),
            strip_question_mark=True,
        ),
        PromptConfig(
            name="passage_few_shot",
            template=_PASSAGE_EXAMPLES + "Question: {query}?\nPassage:",
            stop=("\n",),
            strip_question_mark=True,
        ),
        PromptConfig(name="definition", template="Definition: {query}\nWords:", stop=("\n",)),
        PromptConfig(
            name="definition_few_shot",
            template=DEFINITION_EXAMPLES + "Definition: {query}\nWords:",
            stop=("\n",),
        ),
        # InPars (arXiv 2202.05144): what asks for a query of a passage.
        PromptConfig(name="question_few_shot", template=_QUESTION_EXAMPLES, stop=("\n",)),
        PromptConfig(
            name="chat_definition",
            chat=True,
            system="Answer with a few words that have this meaning, separated by commas.",
            template="{query}",
            stop=("\n",),
        ),
    )
}


def resolve(prompt: str | PromptConfig, place: str = QUERY) -> PromptConfig:
    """A prompt by name, or as it is, that has this place in it. ConfigError lists the names of those that have."""
    named = [name for name, one in PROMPTS.items() if one.place == place]
    if not isinstance(prompt, PromptConfig) and prompt not in PROMPTS:
        meant = nearest(prompt, named)
        raise ConfigError(
            f"there is no prompt named {prompt!r}.{meant} Named ones: {', '.join(named)}; or spell one out."
        )
    found = prompt if isinstance(prompt, PromptConfig) else PROMPTS[prompt]
    if found.place != place:
        raise ConfigError(
            f"prompt {found.name!r} has {found.place} in its template, where {place} is needed. Named ones that have "
            f"that: {', '.join(named)}; or spell one out."
        )
    return found


def render(prompt: PromptConfig, query: str, tokenizer: Any = None) -> str:
    """The text that the model continues. `query` is a passage where the prompt asks for a query.

    `tokenizer` is the model's: its special tokens are made plain text in the query, and a chat prompt needs its
    template. ConfigError when there is none.
    """
    query = query.strip() if tokenizer is None else inert(query.strip(), tokenizer)
    if prompt.strip_question_mark:
        query = query.rstrip("?").rstrip()
    text = prompt.template.replace(prompt.place, query)
    if not prompt.chat:
        return text
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(f"prompt {prompt.name!r} is a chat prompt, but this model's tokenizer has no chat template")
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages.append({"role": "user", "content": text})
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **prompt.chat_kwargs)
    )


def check_prompt(prompt: PromptConfig, tokenizer: Any) -> None:
    """Render a chat prompt once. InputError when the model's chat template cannot do it, or leaves some of it out."""
    if not prompt.chat:
        return
    where = f"prompt {prompt.name!r}: the chat template of {tokenizer.name_or_path}"
    own = 'Put the instruction into the prompt itself (no `system`, and `template: "... {query}"`)'
    try:
        text = render(prompt, _PROBE, tokenizer)
    except ConfigError as error:
        raise InputError(f"{error}. Choose another prompt, or a model that was made for chat.") from None
    except Exception as error:
        # A template is a program: whatever it throws.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = own if prompt.system else "Choose another prompt, or another `chat_kwargs`"
        raise InputError(f"{where} refuses it: {why}. {remedy}.") from None
    if prompt.system and prompt.system.strip() not in text:
        raise InputError(f"{where} leaves the system message out. {own}.")
    if _PROBE not in text:
        raise InputError(f"{where} leaves the query out. Choose another prompt, or a model that was made for chat.")


def inert(query: str, tokenizer: Any) -> str:
    """The query with a blank inside whatever the tokenizer would read as a special token, or mark of a reasoning block.

    What a user types is text, never a role. The search still has the query as it was typed.
    """
    marks = {*special_texts(tokenizer), *(mark for block in BLOCKS for mark in block)}
    special = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True) if len(mark) > 1))
    # Some tokenizers normalise a text before they look for their tokens in it.
    normalised = unicodedata.normalize("NFKC", query)
    if not special.search(query) and special.search(normalised):
        query = normalised
    while found := special.search(query):
        query = f"{query[: found.start() + 1]} {query[found.start() + 1 :]}"
    return query


def token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens, with the special tokens that the tokenizer puts before a text, unless the prompt starts so.

    The same for both engines, for serving and for training.
    """
    marked = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    ids = list(tokenizer(prompt, add_special_tokens=not marked)["input_ids"])
    # Some tokenizers put an end token after a text, too: nothing would follow it.
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token)
    return ids[:-1] if ended else ids


def load_tokenizer(model: Path) -> Any:
    """The tokenizer of a model's directory."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
