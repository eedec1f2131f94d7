"""Configuration: presets parse, mistakes are named, nothing heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aqe.config.pipeline import PRESETS, PipelineConfig, load_config
from aqe.errors import ConfigError
from aqe.sample.prompts import resolve

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_parses(path: Path) -> None:
    config = load_config(path.stem, base_dir=ROOT)
    assert config.name == path.stem
    assert config.runs_dir.is_absolute()
    resolve(config.prompt)
    resolve(config.sample_prompt)


def test_every_yaml_is_yaml() -> None:
    files = [p for p in ROOT.rglob("*.y*ml") if not {".venv", ".tool", "runs"} & set(p.relative_to(ROOT).parts)]
    assert len(files) >= 4
    for path in files:
        assert list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_hold_only_differences(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    defaults = PipelineConfig.model_validate({**tree, "name": "x"}).model_dump(exclude_defaults=True, mode="json")

    def shown(written: object, kept: object, where: str) -> None:
        if isinstance(written, dict) and isinstance(kept, dict):
            for key, value in written.items():
                assert key in kept, f"{where}.{key} says what the default is"
                shown(value, kept[key], f"{where}.{key}")

    shown({k: v for k, v in tree.items() if k not in ("corpus", "queries")}, defaults, path.stem)


@pytest.mark.parametrize(
    ("assignment", "mention"),
    [
        ("sample.num_sample=3", "sample.num_sample: there is no such key"),
        ("align.dpo.beta=-1", "align.dpo.beta"),
        ("align.stages=[dpo, rsft]", "stages"),
        ("sample.num_samples=1", "DPO needs two candidates"),
        ("models=[sft]", "models"),
        ("prompt={name: x, template: no place}", "{query} exactly once"),
        ("sample.seed", "key.path=value"),
        ("name.x=1", "is a value"),
        ("models=[rsft", "the value is not YAML"),
    ],
)
def test_mistakes_are_named(assignment: str, mention: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        load_config("demo", [assignment], ROOT)
    assert mention in str(caught.value)


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"demo, quickstart"):
        load_config("nope", base_dir=ROOT)


def test_unknown_prompt_lists_the_names() -> None:
    with pytest.raises(ConfigError, match=r"ear, "):
        resolve("nope")


def test_overrides_and_base_dir(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "corpus: {format: jsonl, path: data/c.jsonl}\n"
        "queries: {train: {format: jsonl, path: t.jsonl}, dev: {format: jsonl, path: [d.jsonl]}, "
        "test: {format: jsonl, path: /abs/e.jsonl}}\n"
    )
    config = load_config(str(tmp_path / "mine.yaml"), ["align.dpo.beta=0.3", "model.source=org/model"], tmp_path)
    assert config.name == "mine"
    assert config.align.dpo.beta == 0.3
    assert config.model.source == "org/model"
    assert str(config.corpus.path) == str(tmp_path / "data/c.jsonl")  # type: ignore[union-attr]
    assert config.queries.dev.path == [tmp_path / "d.jsonl"]  # type: ignore[union-attr]
    assert str(config.queries.test.path) == "/abs/e.jsonl"  # type: ignore[union-attr]


def test_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; import aqe.config.pipeline, aqe.errors, aqe.artifact, aqe.records; "
        "print([m for m in ('ray', 'torch', 'vllm', 'jnius', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "platform"
    )
    assert out.stdout.strip() == "[]"


def test_platform_is_never_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library's platform"
