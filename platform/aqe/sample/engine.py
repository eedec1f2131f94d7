"""What a generation engine is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aqe.config.sample import SampleConfig


@dataclass(frozen=True)
class Request:
    """One prompt (text, the special tokens of its chat template included) and how many candidates are wanted."""

    prompt: str
    num_samples: int
    seed: int


@dataclass(frozen=True)
class Generated:
    """One candidate. `raw` is the exact decoded text without the stop text.

    `num_tokens` counts what was generated: the end-of-text token or the tokens of the stop text too. `logprob` (nats)
    sums over the same tokens.
    """

    raw: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int
    logprob: float


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


class Engine(Protocol):
    """Generates one closed batch at a time, in this process.

    On a CPU in float32 the same requests give the same candidates bit for bit, whatever was generated before.
    """

    name: str
    prompt_tokens: Counter[str]
    """Of the last `generate`: prompt tokens of all candidates by source, `computed` or `cached` (shared with others).
    Empty where the engine exports them itself."""

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
