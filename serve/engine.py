"""What a serving engine is: many requests at once, each a stream of pieces of text."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from aqe.config.sample import EngineConfig
from aqe.errors import AqeError, InputError
from aqe.expand.recipe import Recipe
from aqe.sample.engine import refusal
from aqe.sample.load import choose_engine
from serve.pulse import Pulse

Reason = Literal["stop", "length"]
#: Seconds after which a refused request can be sent again.
RETRY_AFTER_S = 1


class EngineStopped(AqeError):
    """The engine is dead or makes no progress. The replica is replaced; the request can be sent again."""


@dataclass(frozen=True)
class Decoding:
    """How one request is continued. `temperature` 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def repeats(self) -> bool:
        """The same prompt comes out the same again."""
        return self.temperature == 0 or self.seed is not None


@dataclass(frozen=True)
class Job:
    """One sequence that is to be made."""

    caller: str
    """Whose it is: the name of a key, or an address."""
    prompt: str
    """The special tokens of a chat template included."""
    ids: tuple[int, ...] = field(compare=False)
    """The prompt's tokens."""
    decoding: Decoding
    whole: bool
    """It is wanted in one piece: handing on every token costs time."""


@dataclass(frozen=True)
class Piece:
    """Newly made text and the tokens that were drawn for it; the last piece of a request has a finish reason."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Reason | None = None


class ServingEngine(Protocol):
    """One model in one replica."""

    name: str
    max_model_len: int
    pulse: Pulse
    """Beaten with every step, whatever is handed on of it."""
    places: int
    """Sequences of one caller that it works on at once; it takes `spare_places` more (see `serve.fair`)."""

    def stream(self, job: Job, number: int) -> AsyncGenerator[Piece]:
        """Continue a prompt whose length was checked. Closing it ends the work.

        `number` sequences of the same caller are in work: where memory is short, a low number goes first.
        Raises EngineStopped when the engine is dead.
        """
        ...

    async def check(self) -> None:
        """Raises EngineStopped when the engine cannot answer any more."""
        ...

    def close(self) -> None:
        """End it and its processes."""
        ...


async def open_engine(recipe: Recipe, config: EngineConfig) -> ServingEngine:
    """Load the weights into the engine that the configuration or the machine asks for."""
    import torch

    if choose_engine(config, torch.cuda.is_available(), recipe.path) == "vllm":
        from serve.engine_vllm import VllmServing

        return VllmServing(recipe, config)
    from serve.engine_transformers import TransformersServing

    return TransformersServing(recipe, config)


def check_length(prompt: str, ids: Sequence[int], decoding: Decoding, max_model_len: int) -> None:
    """InputError when there is no prompt, or prompt and expansion together are longer than the model can be."""
    if why := refusal(prompt, ids, decoding.max_tokens, max_model_len):
        raise InputError(f"{why}. Shorten the query, or ask for fewer tokens." if ids else why)
