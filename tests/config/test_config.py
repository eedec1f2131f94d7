"""Configuration: presets parse, mistakes are named, nothing heavy is imported."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from aqe.config import reference
from aqe.config.base import models
from aqe.config.command_line import QUERIES, CommandLine
from aqe.config.data import ModelConfig, is_path
from aqe.config.evaluate import System
from aqe.config.pipeline import PRESETS, PipelineConfig, load_config
from aqe.config.sample import PASSAGE, EngineConfig, PromptConfig
from aqe.config.serve import ServeConfig
from aqe.config.sources import SPLITS
from aqe.config.splits import SharesConfig, SplitsConfig
from aqe.errors import ConfigError
from aqe.prompts import resolve

ROOT = Path(__file__).parents[2]


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
        ("sample.num_sampels=3", "sample.num_sampels: there is no such key. Did you mean 'num_samples'?"),
        ("promt=ear", "promt: there is no such key. Did you mean 'prompt'?"),
        ("smaple={num_samples: 3}", "smaple: there is no such key. Did you mean 'sample'?"),
        ("align.dpo.betta=0.1", "align.dpo.betta: there is no such key. Did you mean 'beta'?"),
        (
            "queries.train={format: jsonl, path: a, limt: 3}",
            "queries.train.limt: there is no such key. Did you mean 'limit'?",
        ),
        ("corpus={format: jsonlines, path: a}", "Did you mean 'jsonl'?"),
        ("engine.name=vlm", "Did you mean 'vllm'?"),
        ("evaluate.systems=[bm25, bm25_tund]", "Did you mean 'bm25_tuned'?"),
        ("models=[rsft_dop]", "Did you mean 'rsft_dpo'?"),
        ("align.dpo.beta=-1", "align.dpo.beta"),
        ("align.stages=[dpo, rsft]", "stages"),
        ("sample.num_samples=1", "DPO needs two candidates"),
        ("evaluate.systems=[bm25, rm3]", "evaluate.systems.1"),
        ("evaluate.pools={all: [nq]}", "evaluate.pools.all names nq; queries.test has reverse_dictionary"),
        ("evaluate.pools={reverse_dictionary: [reverse_dictionary]}", "has the name of a test set"),
        ("align.dpo.loss_weights=[1.0, 0.5]", "`dpo.loss_weights` has 2 numbers"),
        ("evaluate.seeds=0", "evaluate.seeds"),
        ("models=[sft]", "models"),
        ("prompt={name: x, template: no place}", "{query} exactly once"),
        ("prompt=question_few_shot", "has {passage} in its template, where {query} is needed"),
        ("queries={format: synthetic}", "queries.all.number: Field required"),
        ("queries={format: synthetic, number: 9, depht: 3}", "Did you mean 'depth'?"),
        ("queries={format: synthetic, number: 9, from: index}", "Input should be 'corpus'"),
        ("sample.seed", "key.path=value"),
        ("name.x=1", "is a value"),
        ("models=[rsft", "the value is not YAML"),
    ],
)
def test_mistakes_are_named(assignment: str, mention: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        resolve(load_config("demo", [assignment], ROOT).prompt)
    assert mention in str(caught.value)


def test_the_results_of_the_quickstart_are_those_of_its_recipe() -> None:
    quick, results = (load_config(name, [], ROOT) for name in ("quickstart", "results_quickstart"))
    assert results.evaluate.seeds == 3 and set(get_args(System)) == set(results.evaluate.systems)
    # Three seeds of fewer queries: docs/protocol.md has the counts.
    same = {"name": quick.name, "evaluate": quick.evaluate, "queries": quick.queries}
    assert results.model_copy(update=same) == quick
    for split in ("train", "dev", "test"):
        (few,), (all_,) = (config.queries.sources(split) for config in (results, quick))
        assert few.model_copy(update={"limit": all_.limit}) == all_
    wiki = load_config("wiki", [], ROOT)
    assert set(wiki.evaluate.systems) == set(results.evaluate.systems) and wiki.evaluate.seeds == 3
    assert {name for pool in wiki.evaluate.pools.values() for name in pool} == set(wiki.queries.datasets("test"))


def test_union_and_filter_need_several_candidates() -> None:
    only_rsft = ["models=[rsft]", "align.stages=[rsft]", "sample.num_samples=1"]
    with pytest.raises(ConfigError, match=r"evaluate\.systems names filtered, union, made of several candidates"):
        load_config("demo", [*only_rsft, "evaluate.systems=[bm25, union, filtered]"], ROOT)
    assert load_config("demo", [*only_rsft, "evaluate.systems=[bm25]"], ROOT).sample.num_samples == 1


def test_each_seed_trains_anew_and_the_last_samples_anew() -> None:
    config = load_config("demo", ["evaluate.seeds=3", "align.seed=5", "sample.seed=7"], ROOT)
    seeds = [(one.align.seed, one.sample.seed) for one in map(config.seeded, range(3))]
    assert seeds == [(5, 7), (6, 7), (7, 8)] and config.seeded(0) == config
    alone = load_config("demo", ["align.seed=5", "sample.seed=7"], ROOT)
    assert alone.seeded(0) == alone


def test_which_pairs_dpo_reads_is_no_setting_of_the_training(tmp_path: Path) -> None:
    once, twice = (load_config("demo", [f"align.dpo.rounds={n}"], ROOT).align for n in (1, 2))
    assert once.decisive("dpo") == twice.decisive("dpo")
    both = load_config("demo", ["align.dpo.loss_type=[sigmoid, sft]", "align.dpo.loss_weights=[1.0, 0.2]"], ROOT).align
    assert both.decisive("dpo") != once.decisive("dpo") and both.decisive("rsft") == once.decisive("rsft")


def test_one_synthetic_source_in_place_of_the_splits() -> None:
    queries = load_config("demo", ["queries={format: synthetic, from: corpus, number: 2000}"], ROOT).queries
    assert queries.split is not None and queries.split.train == 0.8
    assert queries.asked["all"].number == 2000 and queries.asked["all"].depth == 100
    assert resolve(queries.asked["all"].prompt, PASSAGE).place == PASSAGE
    for split in SPLITS:
        assert queries.synthetic(split) and queries.sources(split) == () and queries.datasets(split) == ("synthetic",)
    written = queries.written(Path("/made"))
    assert written.asked == {} and written.datasets("dev") == ("synthetic",)
    assert [source.path for source in written.sources("dev")] == [Path("/made/dev/synthetic.parquet")]  # type: ignore[union-attr]
    shares = "queries={format: synthetic, number: 9, split: {train: 0.5, dev: 0.25, test: 0.25}}"
    assert load_config("demo", [shares], ROOT).queries.split == SharesConfig(train=0.5, dev=0.25, test=0.25)


def test_synthetic_sources_beside_others() -> None:
    own, synthetic = {"format": "jsonl", "path": "a.jsonl"}, {"format": "synthetic", "number": 9}
    queries = SplitsConfig.model_validate({"train": [own, synthetic], "dev": {**synthetic, "number": 3}, "test": own})
    assert {key: source.number for key, source in queries.asked.items()} == {"train": 9, "dev": 3}
    assert [queries.synthetic(split) for split in SPLITS] == [True, True, False]
    assert queries.datasets("train") == ("a", "synthetic") == queries.written(Path("/made")).datasets("train")
    assert queries.written(Path("/made")).sources("test") == queries.sources("test")
    for wrong, mention in (
        ({"train": [synthetic, synthetic], "dev": own, "test": own}, "several synthetic sources"),
        ({"all": [own, synthetic], "split": {}}, "Only synthetic training queries are filtered"),
        ({"train": synthetic, "dev": {**synthetic, "depth": 5}, "test": own}, "the same `prompt` and `depth`"),
    ):
        with pytest.raises(ValueError, match=mention):
            SplitsConfig.model_validate(wrong)


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"demo, nq, quickstart"):
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
    assert config.queries.dev.path == (tmp_path / "d.jsonl",)  # type: ignore[union-attr]
    assert str(config.queries.test.path) == "/abs/e.jsonl"  # type: ignore[union-attr]


def test_paths_are_read_from_the_configurations_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    splits = ", ".join(f"{split}: {{format: jsonl, path: data/{split}.jsonl}}" for split in SPLITS)
    (tmp_path / "work" / "mine.yaml").write_text(
        f"corpus: {{format: jsonl, path: ../c.jsonl}}\nqueries: {{{splits}}}\nmodel: {{source: ./model}}\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("../work/mine.yaml", str(tmp_path / "work" / "mine.yaml")):
        config = load_config(name, ["evaluate.seeds=2"])
        assert config.run_dir == tmp_path / "work" / "runs" / "mine"
        assert config.corpus.path == tmp_path / "c.jsonl"  # type: ignore[union-attr]
        assert config.queries.dev.path == tmp_path / "work" / "data" / "dev.jsonl"  # type: ignore[union-attr]
        assert config.model.source == str(tmp_path / "work" / "model")
    # What is typed is below the same directory, a preset's paths are below where you are, and --base-dir counts most.
    assert load_config("../work/mine.yaml", ["runs_dir=r"]).runs_dir == tmp_path / "work" / "r"
    assert load_config("demo").runs_dir == tmp_path / "elsewhere" / "runs"
    assert load_config("../work/mine.yaml", [], Path("data")).runs_dir == tmp_path / "elsewhere" / "data" / "runs"


def test_small_sets_what_is_not_typed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "corpus: {format: jsonl, path: c.jsonl}\nmodel: {source: org/large, revision: main}\n"
        "queries: {all: {format: jsonl, path: q.jsonl}, split: {train: 0.8, dev: 0.1, test: 0.1}}\n"
        "sample: {num_samples: 50, temperature: 0.7}\n"
    )
    asked = CommandLine(str(tmp_path / "mine.yaml"), ("sample.max_tokens=16",), small=True)
    config = asked.load()
    assert config.model == ModelConfig() and config.models == ("rsft_dpo",)
    assert (config.sample.num_samples, config.sample.max_tokens, config.sample.temperature) == (8, 16, 0.7)
    assert config.queries.all.limit == QUERIES  # type: ignore[union-attr]
    assert replace(asked, limit=7).load().queries.all.limit == 7  # type: ignore[union-attr]
    assert asked.options == ["--config", asked.config, "--set", "sample.max_tokens=16", "--small"]
    large = replace(asked, overrides=("align.seed=1",), small=False, limit=9, base_dir=tmp_path)
    assert large.load().model.source == "org/large" and large.smaller == replace(large, small=True)
    assert large.options[-4:] == ["--base-dir", str(tmp_path), "--limit", "9"]
    # What would make it larger again is left out: keys that it sets, those below and above them, and a higher limit.
    typed = ("sample.num_samples=50", "model.source=x", "sample={}", "evaluate.seed=1")
    assert replace(large, overrides=typed, limit=QUERIES + 1).smaller == replace(
        large, overrides=("evaluate.seed=1",), limit=None, small=True
    )


def test_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; import aqe.config.pipeline, aqe.errors, aqe.artifact, aqe.records; "
        "print([m for m in ('ray', 'torch', 'vllm', 'jnius', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "platform"
    )
    assert out.stdout.strip() == "[]"


def defaults(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Keys that have a default, with its value as JSON would hold it."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        nested = models(field.annotation)
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        if not field.is_required() and not isinstance(value, BaseModel):
            yield f"{prefix}{key}", to_jsonable_python(value)
        for inner in nested:
            if inner is not PromptConfig:
                yield from defaults(inner, f"{prefix}{key}.")


def cells(line: str) -> list[str]:
    """Those of a table's row. A bar inside of a cell stands behind a backslash."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_reference_shows_each_default_as_yaml_that_reads_back_to_it() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference.page(), "run `make docs`"
    both: tuple[type[BaseModel], ...] = (PipelineConfig, ServeConfig)
    shown: dict[str, list[object]] = {}
    for part, model in zip(page.split(reference.ENDPOINT), both, strict=True):
        # What is shown at another key: `queries.dev` as `queries.train`; of the endpoint, at a key of the first part.
        elsewhere = dict(re.findall(r"^\| `([\w.]+)` \|.* as \[`([\w.]+)`\]", part, re.MULTILINE))
        if model is ServeConfig:
            elsewhere["engine"] = "engine"
        for line in part.splitlines():
            if line.startswith("| `"):
                key, *_, default, _ = cells(line)
                # One for each format, where they differ.
                values = [yaml.safe_load(one.replace("\\|", "|")) for one in re.findall(r"(?<!\w)`([^`]+)`", default)]
                shown.setdefault(key.strip("`"), []).extend(values)
        wanted = dict(defaults(model))
        assert len(wanted) > 20 and any(value is None for value in wanted.values())
        for name, value in wanted.items():
            key = name
            for there, at in elsewhere.items():
                if key.startswith(f"{there}."):
                    key = at + key.removeprefix(there)
            assert value in shown[key] and all(type(v) is type(value) for v in shown[key] if v == value), key


def test_the_reference_says_of_every_key_once_what_it_does() -> None:
    for part in reference.page().split(reference.ENDPOINT):
        rows = [cells(line) for line in part.splitlines() if line.startswith("| `")]
        keys = [key for key, *_ in rows]
        assert len(keys) > 10 and len(keys) == len(set(keys))
        for key, *_, about in rows:
            assert about.endswith((".", ")")) and len(about.split()) > 2, key


@pytest.mark.parametrize("value", [None, True, 0, 1e-08, 5e-05, "", "null", "on", (1, 2), {"a": None}, "a: b | c"])
def test_any_default_survives_the_reference(value: object) -> None:
    cell = reference.as_yaml(value)
    assert "\n" not in cell and not re.search(r"(?<!\\)\|", cell)
    assert yaml.safe_load(cell.replace("\\|", "|")) == to_jsonable_python(value)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        *(("gpt2", False), ("owner/name", False), ("package:smollm2-135m-instruct", False)),
        *(("./gpt2", True), ("~/gpt2", True), ("/models/gpt2", True), ("a/b/c", True), ("here", True), ("", True)),
    ],
)
def test_a_model_is_a_path_a_hub_id_or_a_packages(source: str, path: bool, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert is_path(source, tmp_path) is path
    tree = {"name": "x", "corpus": {"format": "reverse_dictionary"}, "model": {"source": source}}
    tree["queries"] = {s: {"format": "reverse_dictionary", "split": s} for s in ("train", "dev", "test")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    # What is a path is made absolute; the rest stays as it is.
    kept = load_config(str(tmp_path / "mine.yaml"), base_dir=tmp_path).model.source
    assert (kept != source) is (path and not source.startswith("/"))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["jsonl", "train", "path", "."]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["format", "path", "k1", "dpo", "x", "all"]), inside, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(PipelineConfig.model_fields)) | st.text(max_size=6), JUNK, max_size=4))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_refused_in_one_line(tmp_path: Path, junk: dict[str, Any]) -> None:
    good = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    (tmp_path / "junk.yaml").write_text(yaml.safe_dump({**good, **junk}, allow_unicode=True))
    try:
        load_config(str(tmp_path / "junk.yaml"))
    except ConfigError as error:
        assert "\n" not in str(error) and "junk.yaml" in str(error)


def test_units_in_flight_keep_a_gpus_places_taken() -> None:
    engine = EngineConfig()
    assert (engine.in_flight(use_gpu=False, sequences=400), engine.in_flight(use_gpu=True, sequences=400)) == (1, 3)
    assert EngineConfig(max_batch=1024).in_flight(use_gpu=True, sequences=400) == 7
    assert EngineConfig(units_in_flight=2).in_flight(use_gpu=False, sequences=400) == 2


def blocks(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_configurations_on_pages_are_valid() -> None:
    (mine,) = blocks("README.md")
    (page,) = blocks("docs/own-corpus.md")
    assert page == mine, "README.md and docs/own-corpus.md show the same mine.yaml"
    (own,) = blocks("docs/prompts.md")
    for changes in ("{}", own):
        PipelineConfig.model_validate({"name": "mine"} | yaml.safe_load(mine) | yaml.safe_load(changes))
