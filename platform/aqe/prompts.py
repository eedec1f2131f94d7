"""Named prompts, and how a query becomes the text that a model continues."""

from pathlib import Path
from typing import Any

from aqe.config.sample import PromptConfig
from aqe.errors import ConfigError

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
        PromptConfig(
            name="chat_definition",
            chat=True,
            system="Answer with a few words that have this meaning, separated by commas.",
            template="{query}",
            stop=("\n",),
        ),
    )
}


def resolve(prompt: str | PromptConfig) -> PromptConfig:
    """A prompt by name, or as it is. ConfigError lists the names."""
    if isinstance(prompt, PromptConfig):
        return prompt
    if prompt not in PROMPTS:
        raise ConfigError(f"there is no prompt named {prompt!r}. Named ones: {', '.join(PROMPTS)}; or spell one out.")
    return PROMPTS[prompt]


def render(prompt: PromptConfig, query: str, tokenizer: Any = None) -> str:
    """The text that the model continues. A chat prompt needs the model's tokenizer for its template."""
    query = query.strip()
    if prompt.strip_question_mark:
        query = query.rstrip("?").rstrip()
    text = prompt.template.replace("{query}", query)
    if not prompt.chat:
        return text
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(f"prompt {prompt.name!r} is a chat prompt, but this model's tokenizer has no chat template")
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages.append({"role": "user", "content": text})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens, with the special tokens that the tokenizer adds to a text unless the prompt starts so."""
    marked = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    return list(tokenizer(prompt, add_special_tokens=not marked)["input_ids"])


def template_tokenizer(prompt: PromptConfig, model: Path) -> Any:
    """The model's tokenizer where the prompt needs its chat template, else None: importing it takes seconds."""
    if not prompt.chat:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
