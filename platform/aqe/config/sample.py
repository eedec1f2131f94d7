"""Prompts and sampling."""

from typing import Any, Literal

from pydantic import Field, model_validator

from aqe.config.base import Config

#: Where a prompt that asks for an expansion has the query, and one that asks for a query has the passage.
PLACES = QUERY, PASSAGE = ("{query}", "{passage}")


class PromptConfig(Config):
    """Text before the expansion. `{query}` stands for the query. A prompt that asks for a query has `{passage}`
    instead."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of your prompt in reports and cards: small letters, digits and `_`."""
    template: str
    """Text that the model continues. With `chat` it is the user's message."""
    chat: bool = False
    """Wrap `template` in the model's chat template."""
    system: str | None = None
    """System message of a chat prompt."""
    chat_kwargs: dict[str, Any] = Field(default_factory=lambda: {"enable_thinking": False})
    """Passed to the chat template. Templates that do not know `enable_thinking` ignore it. A model that thinks before
    it answers would otherwise spend the expansion's tokens on that."""
    stop: tuple[str, ...] = ()
    """Texts that end an expansion. They are not part of it."""
    strip_question_mark: bool = False
    """Remove the final question mark of the query."""

    @property
    def place(self) -> str:
        """What the query or the passage is put in place of."""
        return next(place for place in PLACES if place in self.template)

    @model_validator(mode="after")
    def _has_place(self) -> "PromptConfig":
        if sum(map(self.template.count, PLACES)) != 1:
            raise ValueError(
                f"prompt {self.name!r}: `template` must contain {{query}} exactly once (or {{passage}}, to ask for one)"
            )
        if self.system is not None and not self.chat:
            raise ValueError(f"prompt {self.name!r}: `system` has no effect without `chat: true`")
        return self


class SampleConfig(Config):
    """How candidate expansions are drawn."""

    prompt: str | PromptConfig | None = None
    """Prompt that samples. `null` means `prompt`, which trains and serves."""
    num_samples: int = Field(default=50, ge=1)
    """Candidates per query, including the greedy one."""
    include_greedy: bool = True
    """Make the first candidate (`sample_idx` 0) the greedy one."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of sampling. Higher draws less likely words."""
    top_k: int = Field(default=50, ge=0)
    """Draw each token from this many most likely ones. 0 means from all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw each token from the most likely ones that together have this probability."""
    max_tokens: int = Field(default=100, ge=1)
    """Tokens per candidate at most."""
    seed: int = 0
    """Seed of sampling."""
    queries_per_unit: int = Field(default=8, ge=1)
    """Queries that are generated together, as one closed batch. A run resumes at this unit."""


class EngineConfig(Config):
    """What generates text, for sampling and for evaluation."""

    name: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` takes vLLM if it is installed and supports the machine, otherwise transformers."""
    workers: int | None = Field(default=None, ge=1)
    """Actors that generate. `null` means one per GPU, or one per CPU core if there is no GPU. Actors that do not fit
    wait for an autoscaler."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of generation. `auto` means bfloat16 on a GPU. On a CPU it means bfloat16 if the weights are stored so
    and the CPU multiplies it (AVX512-BF16 or AMX), which takes about half the time, otherwise float32."""
    max_model_len: int = Field(default=1024, ge=16)
    """Tokens of prompt and expansion together."""
    max_batch: int = Field(default=256, ge=1)
    """Sequences that are decoded together. On an H100, the transformers engine was 1.4 to 2.6 times as fast with
    1024."""
    units_in_flight: int | None = Field(default=None, ge=1)
    """Units that vLLM works on at once, so that candidates of the next unit fill the places of those that have ended.
    On a GPU, `null` means one more than the units that hold twice `max_batch` sequences, so that no place is empty. On
    a CPU, `null` means 1: a unit that is done again then gives the same candidates bit for bit."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """GiB per actor for the key-value cache of vLLM's CPU build."""
    extra: dict[str, object] = Field(default_factory=dict)
    """Passed to `vllm.LLM` as it is."""

    def in_flight(self, use_gpu: bool, sequences: int) -> int:
        """`units_in_flight` with null resolved, for units of so many sequences."""
        return self.units_in_flight or (1 - -2 * self.max_batch // sequences if use_gpu else 1)
