"""Prompts and sampling."""

from typing import Any, Literal

from pydantic import Field, model_validator

from aqe.config.base import Config

#: Where a prompt that asks for an expansion has the query, and one that asks for a query has the passage.
PLACES = QUERY, PASSAGE = ("{query}", "{passage}")


class PromptConfig(Config):
    """Text before the expansion. `{query}` stands for the query; what asks for a query has `{passage}` in its place."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    template: str
    """What the model continues (or, with `chat`, the user's message)."""
    chat: bool = False
    """Wrap `template` with the model's chat template."""
    system: str | None = None
    """System message of a chat prompt."""
    chat_kwargs: dict[str, Any] = Field(default_factory=lambda: {"enable_thinking": False})
    """Handed to the chat template. Templates that do not know `enable_thinking` ignore it; where they do, a model that
    thinks before it answers would otherwise spend the expansion's tokens on that."""
    stop: tuple[str, ...] = ()
    """Texts that end an expansion; they are not part of it."""
    strip_question_mark: bool = False
    """Leave out the query's final question mark."""

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
    """Prompt that samples; null means the pipeline's `prompt`, which trains and serves."""
    num_samples: int = Field(default=50, ge=1)
    """Candidates a query, the greedy one included."""
    include_greedy: bool = True
    """The first candidate (sample_idx 0) is the greedy one."""
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=50, ge=0)
    """0 means no cut."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=100, ge=1)
    seed: int = 0
    queries_per_unit: int = Field(default=8, ge=1)
    """Queries generated together as one closed batch, the unit of resuming."""


class EngineConfig(Config):
    """The engine that generates, for sampling and for evaluation."""

    name: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto`: vLLM where it is installed and supports the machine, else transformers."""
    workers: int | None = Field(default=None, ge=1)
    """Actors; null means one a GPU, or one a CPU core where there is no GPU. More than fit wait for an autoscaler."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU; on a CPU float32, or bfloat16 where the weights are stored so and the CPU multiplies
    it (AVX512-BF16 or AMX), which takes about half the time."""
    max_model_len: int = Field(default=1024, ge=16)
    """Tokens of prompt and expansion together."""
    max_batch: int = Field(default=256, ge=1)
    """Sequences decoded together. On an H100 the transformers engine was 1.4 to 2.6 times as fast with 1024."""
    units_in_flight: int | None = Field(default=None, ge=1)
    """Units that vLLM has open at once, so that the next one's candidates take the places of those that have ended.
    null means on a GPU one more than hold twice `max_batch` sequences, so that its places are always taken; and 1 on a
    CPU, where a unit that is done again then gives the same candidates bit for bit."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Key-value cache of vLLM's CPU build, GiB an actor."""
    extra: dict[str, object] = Field(default_factory=dict)
    """Passed to `vllm.LLM` as it is."""

    def in_flight(self, use_gpu: bool, sequences: int) -> int:
        """`units_in_flight` with null resolved, for units of so many sequences."""
        return self.units_in_flight or (1 - -2 * self.max_batch // sequences if use_gpu else 1)
