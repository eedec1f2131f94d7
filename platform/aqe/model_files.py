"""What can be wrong with a model's files, found without reading its weights.

All raise InputError with the file, why it is wrong, and what to do.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

from aqe.errors import InputError

TOKENIZER = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken")
WEIGHTS = "*.safetensors"
_ADAPTER = "adapter_config.json"
#: What config.json has a part for, named so, where a model reads more than text.
_SENSES = ("vision", "audio", "speech", "image", "video")
#: Kinds of layers, in transformers' words: those that keep keys and values, or nothing; and those that keep a state.
ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention", "moe", "mlp"})
_STATE = frozenset({"linear_attention", "hybrid", "hybrid_sliding"})


def check_directory(path: Path, weights: bool = True) -> None:
    """InputError unless `path` is a Hugging Face directory of a causal language model with a tokenizer."""
    if (path / _ADAPTER).is_file() and not (path / "config.json").is_file():
        base = _json(path / _ADAPTER).get("base_model_name_or_path") or "its base model"
        raise InputError(
            f"{path} is an adapter of {base}, without that model. Load {base} with transformers and the adapter with "
            "peft, and write what `merge_and_unload` gives, with the tokenizer, with `save_pretrained`."
        )
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} has no config.json, so it is not a Hugging Face model directory. Name the directory that "
            "`save_pretrained` wrote."
        )
    if not any(any(path.glob(pattern)) for pattern in TOKENIZER):
        raise InputError(
            f"{path} has no tokenizer (none of {', '.join(TOKENIZER)}). Save it next to the weights with "
            "`tokenizer.save_pretrained`."
        )
    if weights and not any(path.glob(WEIGHTS)):
        raise InputError(
            f"{path} has no weights in safetensors format (*.safetensors). Load the model with transformers and "
            "write it again with `save_pretrained`."
        )
    config = _json(path / "config.json")
    kinds = ", ".join(config.get("architectures") or [])
    if config.get("is_encoder_decoder"):
        raise InputError(
            f"{path} is an encoder-decoder model ({kinds or config.get('model_type')}), which is not supported. AQE "
            "aligns causal (decoder-only) language models: name one of those, such as a Llama, Qwen or Mistral model."
        )
    if "ConditionalGeneration" in kinds or any(config.get(f"{sense}_config") for sense in _SENSES):
        raise InputError(
            f"{path} is a model of more than text ({kinds or config.get('model_type')}), which is not supported. Name "
            "a language model of text alone: most families also have one. Or take its language model out and "
            "write that with `save_pretrained`."
        )
    if kinds and not re.search("CausalLM|LMHead", kinds):
        raise InputError(
            f"{path} holds {kinds}, which does not generate text. Name a causal language model (its config.json lists "
            "an architecture such as LlamaForCausalLM)."
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Fetch the model again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object, but {type(content).__name__}. Fetch the model again.")
    return content


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read ({error}). Let it be read by who runs this, or fetch the model again.")


def check_weights(path: Path) -> None:
    """InputError unless every file of weights is there and as long as its header says. Reads the headers alone."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if index.is_file():
        for name in sorted(set(_json(index).get("weight_map", {}).values())):
            if not (path / name).is_file():
                raise InputError(f"{path} lacks {name}, which {index.name} names. Fetch the model again.")
    for file in sorted(path.glob(WEIGHTS)):
        try:
            with safe_open(file, "np"):
                pass
        except OSError as error:
            raise _unreadable(file, error) from None
        except SafetensorError as error:
            raise InputError(f"{file} is broken ({error}). Fetch the model again.") from None


def check_architecture(path: Path, engine: str) -> Any:
    """The model's configuration. InputError when it cannot be aligned with this transformers and this engine."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers import __version__ as version

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        # Whatever a configuration of another time, or of somebody's own code, makes the library throw.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path / 'config.json'} describes no model that transformers {version} knows ({why}). Name a model that "
            "it knows without code of the model's own."
        ) from None
    kind = f"{path} ({config.model_type})"
    if quantized := getattr(config, "quantization_config", None):
        method = quantized.get("quant_method", "") if isinstance(quantized, dict) else quantized.quant_method
        raise InputError(
            f"{kind} has quantised weights ({getattr(method, 'value', method)}), which cannot be trained. Name the "
            "model that it was made from. (What bitsandbytes, FP8 or MXFP4 quantised, transformers also loads "
            "dequantised: write that with `save_pretrained`.)"
        )
    if config.is_encoder_decoder:
        raise InputError(f"{kind} is an encoder-decoder model, which is not supported. Name a causal language model.")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(f"{kind} is no causal language model for transformers {version}. Name one that is.")
    # Classes for filling in masks are causal where they are told so alone.
    if type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", True):
        raise InputError(
            f"{kind} reads texts in both directions (is_decoder is false in its config.json), so it does not generate "
            "text. Name a causal language model."
        )
    if config.get_text_config() is not config:
        raise InputError(
            f"{kind} is a language model inside another, which is not supported. Name a language model of text alone."
        )
    if engine != "vllm" and (lack := _not_held(config, AutoModelForCausalLM._model_mapping[type(config)])):
        raise InputError(
            f"the transformers engine cannot continue {kind}: it {lack}. Set engine.name: vllm (needs GPUs for such a "
            "model), or name another model."
        )
    return config


def _not_held(config: Any, model_class: Any) -> str | None:
    """Why the transformers engine cannot carry a model's cache from token to token, if it cannot."""
    answer = inspect.signature(model_class.forward).return_annotation
    if not any(
        "past_key_values" in getattr(kind, "__dataclass_fields__", {}) for kind in get_args(answer) or (answer,)
    ):
        return "gives no cache of keys and values back (past_key_values)"
    # A class that says that it is stateful keeps its state in the library's own cache. MiniMax keeps one beside that.
    held = ATTENTION | {"conv"} | (_STATE if getattr(model_class, "_is_stateful", False) else set())
    if layers := set(getattr(config, "layer_types", None) or ()) - held:
        return f"has layers with a cache of their own kind ({', '.join(sorted(layers))})"
    return None
