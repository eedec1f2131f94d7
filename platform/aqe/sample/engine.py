"""What a generation engine is."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from aqe.config.sample import EngineConfig, SampleConfig


@dataclass(frozen=True)
class Request:
    """One prompt (text, the special tokens of its chat template included) and how many candidates are wanted."""

    prompt: str
    num_samples: int
    seed: int


@dataclass(frozen=True)
class Generated:
    """One candidate. `raw` is the exact decoded text without the stop text; `answer` is `raw` without what the model
    thought before it answered (see aqe.reasoning).

    `token_ids` are all tokens that were drawn, the end token or those of the stop text too; `logprob` (nats) sums over
    them. `stop_at` is None unless a stop text ended the candidate: so many of the first tokens hold all of `raw`.
    """

    raw: str
    answer: str
    finish_reason: Literal["stop", "length"]
    token_ids: tuple[int, ...]
    logprob: float
    stop_at: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that were drawn."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Sampling:
    """Decoding settings of an engine's life. `temperature` 0 is greedy for every candidate."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    include_greedy: bool = False
    """Candidate 0 of a request is the greedy one, the rest are drawn."""
    stop: tuple[str, ...] = ()

    @classmethod
    def draw(cls, config: SampleConfig, stop: tuple[str, ...]) -> "Sampling":
        return cls(config.max_tokens, config.temperature, config.top_k, config.top_p, config.include_greedy, stop)


def precision(config: EngineConfig, model_path: str, use_gpu: bool) -> str:
    """`engine.dtype` with `auto` resolved for a model and this machine.

    Rounding to bfloat16 leaves weights that are stored so as they are, but undoes part of what alignment changed in
    those that were trained in float32 (docs/experiments.md): many move by less than bfloat16 can tell apart.
    """
    if config.dtype != "auto":
        return config.dtype
    if use_gpu:
        return "bfloat16"
    import torch
    from transformers import AutoConfig

    able = torch.cpu.get_capabilities()
    stored = AutoConfig.from_pretrained(model_path).get_text_config().dtype
    fast = able.get("avx512_bf16") or able.get("amx_bf16")
    return "bfloat16" if fast and stored == torch.bfloat16 else "float32"


#: Prompt tokens that are decoded with a continuation, so that its leading blank survives.
TAIL = 8


def continuation(tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text that `token_ids` add to a prompt, special tokens left out."""
    tail = list(prompt_ids[-TAIL:])
    before, after = tokenizer.batch_decode(
        [tail, [*tail, *token_ids]], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(after[len(before) :])


def tokens_of(tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int], raw: str) -> int:
    """How many of the first tokens hold all of `raw`, which is the beginning of their text. The last of them may hold
    more: it was drawn whole."""
    count = len(token_ids)
    while count and continuation(tokenizer, prompt_ids, token_ids[: count - 1]).startswith(raw):
        count -= 1
    return count


class Watch(Protocol):
    """Looks on between the steps of decoding, from the thread that decodes."""

    def step(self) -> None:
        """Every sequence of a batch has got a token."""
        ...

    def wanted(self, request: int) -> bool:
        """Whether anybody still waits for a request, by its place. If not, its candidates end as they are."""
        ...


class Engine(Protocol):
    """Generates one closed batch at a time, in this process.

    On a CPU in float32 the same requests give the same candidates bit for bit, whatever was generated before.
    """

    name: str
    prompt_tokens: Counter[str]
    """Of the last `generate`: prompt tokens of all candidates by source, `computed` or `cached` (shared with others).
    Empty where the engine exports them itself."""

    def with_sampling(self, sampling: Sampling) -> "Engine":
        """The same model, decoded otherwise."""
        ...

    def stream(
        self, batches: Iterator[tuple[str, Sequence[Request]]], in_flight: int
    ) -> Iterator[tuple[str, list[list[Generated] | str]]]:
        """Answers of each batch by its name; an engine that can has `in_flight` of them open at once."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[list[Generated] | str]:
        """Candidates of each request in order, or the reason why a request cannot be served (too long, empty)."""
        ...


def refusal(prompt: str, ids: Sequence[int], max_tokens: int, limit: int) -> str | None:
    """Why a prompt cannot be continued by `max_tokens`, if it cannot; `limit` is what the model is loaded with."""
    if not prompt.strip() or not ids:
        return "the prompt is empty"
    if len(ids) + max_tokens > limit:
        return (
            f"the prompt has {len(ids)} tokens; with max_tokens {max_tokens} that is more than the {limit} that "
            "engine.max_model_len and the model allow"
        )
    return None
