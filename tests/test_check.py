"""What is found before any compute is spent."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aqe.check import check
from aqe.config.pipeline import load_config
from aqe.config.sources import FileQueries, ReverseDictionaryQueries
from aqe.corpus.queries import count
from aqe.cost import H100, cost
from aqe.errors import ConfigError, InputError
from tests.tools import tiny_model
from tests.tools.small_project import SMALL, write_project

ROOT = Path(__file__).parents[1]


def test_what_is_generated_must_fit_into_the_models_own_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = [*SMALL, "engine.max_model_len=2048"]
    check(load_config("mine.yaml", [*asked, "sample.max_tokens=400"]))
    for key in ("sample", "evaluate"):
        with pytest.raises(
            ConfigError, match=r"max_tokens is 512; .* was made for 512 tokens.*Lower sample\.max_tokens"
        ):
            check(load_config("mine.yaml", [*asked, f"{key}.max_tokens=512"]))


def test_a_prompt_leaves_room_for_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    # The tiny model's tokens are characters: few-shot examples have more than 400.
    for key in (
        "sample.prompt=passage_few_shot",
        "prompt=passage_few_shot",
        "evaluate.zero_shot_prompts=[passage_few_shot]",
    ):
        with pytest.raises(
            ConfigError, match=r"'passage_few_shot' leaves no room .* max_tokens 12 .* more than the 256"
        ):
            check(load_config("mine.yaml", [*SMALL, key]))
    check(load_config("mine.yaml", [*SMALL, "engine.max_model_len=512", "sample.prompt=passage_few_shot"]))


#: Questions that have a passage with an answer (EAR, arXiv 2305.17080).
PAPER = {"nq": (58_880, 8_757), "triviaqa": (60_413, 8_837)}


@pytest.mark.parametrize("preset", PAPER)
def test_the_papers_settings_pass_and_say_what_they_take(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who has the index, the passages and the questions: all but the contents of the files."""
    config = load_config(preset, [], tmp_path)
    train, dev = PAPER[preset]
    line = json.dumps({"qid": "q", "text": "who wrote it", "answers": ["someone"]}) + "\n"
    sizes = {f"{preset}.train": train, f"{preset}.dev": dev, f"{preset}.test": 3_610}
    sizes |= {"webq.test": 2_032, "entityquestions.test": 22_075}
    (tmp_path / "data" / "lucene-index.wikipedia-dpr-100w").mkdir(parents=True)
    (tmp_path / "data" / "lucene-index.wikipedia-dpr-100w" / "segments_1").touch()
    (tmp_path / "data" / "wikipedia-dpr-100w").mkdir()
    passage = {"docid": ["1"], "title": ["A quarrel"], "text": ["He said no."]}
    pq.write_table(pa.table(passage), tmp_path / "data" / "wikipedia-dpr-100w" / "passages.parquet")
    for name, number in sizes.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text(line * number)
    in_hub_cache(config.model.source, tmp_path / "hub", monkeypatch)
    model = check(config)
    assert model is not None
    found = cost(config, model.parameters)
    assert found.queries == {"train": train, "dev": dev, "test": 3_610 + 2_032 + 22_075}
    assert found.drawn == 50 * train
    # RSFT is trained once, for itself and for RSFT + DPO.
    assert found.steps == {"rsft": -(-train // 16), "dpo": -(-2 * train // 16)}
    assert 3e9 < model.parameters < 5e9
    generation, training = found.hours(H100)
    # 2.9 M candidates of 100 tokens, 16 k tokens a second.
    assert 4 < generation < 8
    assert 0.5 < training < 2
    lines = list(found.lines())
    assert any("one H100: " in line for line in lines)
    if preset == "nq":
        # But for the disk: here the corpus is one passage.
        assert "\n".join(lines[:-1]) in (ROOT / "docs" / "results.md").read_text()


def in_hub_cache(source: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub's cache holds of a model before its weights are fetched. Its layers are the real one's in size."""
    from transformers import Qwen3Config

    snapshot = cache / f"models--{source.replace('/', '--')}" / "snapshots" / ("0" * 40)
    tiny_model.save(snapshot)
    for weights in snapshot.glob("*.safetensors"):
        weights.unlink()
    sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    qwen = Qwen3Config(**sizes, num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True)
    qwen.architectures = ["Qwen3ForCausalLM"]
    qwen.save_pretrained(snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_plan_counts_what_a_configuration_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    one = cost(load_config("mine.yaml", SMALL), 1_000)
    three = cost(load_config("mine.yaml", [*SMALL, "evaluate.seeds=3"]), 1_000)
    config = load_config("mine.yaml", SMALL)
    assert one.queries == {split: sum(map(count, config.queries.sources(split))) for split in ("train", "dev", "test")}
    assert one.drawn >= config.sample.num_samples * one.queries["train"]
    # The last of several seeds draws anew.
    assert three.drawn == 2 * one.drawn
    assert three.steps == {kind: pytest.approx(3 * steps, abs=2) for kind, steps in one.steps.items()}
    again = cost(load_config("mine.yaml", [*SMALL, "align.dpo.rounds=2"]), 1_000)
    assert again.drawn > one.drawn
    assert again.steps["dpo"] == pytest.approx(2 * one.steps["dpo"], abs=1)
    # Three seeds keep three times as many models; a corpus ten times as large takes more.
    assert three.disk > one.disk
    rows = (tmp_path / "corpus.jsonl").read_text()
    (tmp_path / "corpus.jsonl").write_text(rows * 10)
    assert cost(config, 1_000).disk - one.disk > 9 * len(rows)
    unknown = cost(config, None)
    assert not any("hours" in line for line in unknown.lines())


@pytest.mark.parametrize(
    ("file", "rows", "message"),
    [
        (
            "train.jsonl",
            [{"qid": "1", "text": "a", "positive": ["d1"]}],
            r"queries\.train: .*mean 'positive'.*positives: positive",
        ),
        (
            "train.jsonl",
            [{"qid": "1", "text": "a"}],
            r"queries\.train: .*does not say what is relevant.*It has qid, text",
        ),
        ("dev.jsonl", [{"quid": "1", "text": "a"}], r"dev\.jsonl:1: no column is qid.*mean 'quid'"),
        ("corpus.jsonl", [{"docid": "1", "txt": "a"}], r"corpus\.jsonl:1: no column is text or title.*mean 'txt'"),
    ],
)
def test_columns_that_are_not_there_are_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, rows: list[dict[str, Any]], message: str
) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message):
        check(load_config("mine.yaml", SMALL))


def test_judgements_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"qid": "1", "text": "a"}\n')
    qrels = "queries.train.qrels={format: trec, path: qrels.txt}"
    with pytest.raises(InputError, match=r"queries\.train\.qrels\.path: .*qrels\.txt does not exist"):
        check(load_config("mine.yaml", [*SMALL, qrels]))
    (tmp_path / "qrels.txt").write_text("1 0 d1 2\n")
    check(load_config("mine.yaml", [*SMALL, qrels]))
    (tmp_path / "qrels.txt").write_text("1 d1 2\n")
    with pytest.raises(InputError, match="none of its first 1 rows can be read: 1 not `qid 0 docid relevance`"):
        check(load_config("mine.yaml", [*SMALL, qrels]))


def test_a_source_is_counted_as_far_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"qid": "1"}\n\n' * 7)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"qid": "1"}\n' * 30)
    source = FileQueries(format="jsonl", path=(tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"), skip=2, limit=20)
    assert count(source) == 5 + 20
    assert count(ReverseDictionaryQueries(format="reverse_dictionary", split="test", limit=10)) == 10


def test_synthetic_queries_are_part_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = [*SMALL, "engine.max_model_len=512", "queries={format: synthetic, number: 100}"]
    # The tiny model's tokens are characters: the examples have more than it was made for.
    with pytest.raises(ConfigError, match=r"'question_few_shot' leaves no room for a passage of one word"):
        check(load_config("mine.yaml", asked))
    asked.append('queries.prompt={name: own, template: "{passage} asks"}')
    config = load_config("mine.yaml", asked)
    check(config)
    plan = cost(config, 1_000)
    assert plan.queries == {"train": 80, "dev": 10, "test": 10} and plan.asked == 100
    assert any("100 passages are asked for a query" in line for line in plan.lines())
    own = cost(load_config("mine.yaml", [*asked[:-2], "queries.train={format: synthetic, number: 80}"]), 1_000)
    assert own.queries == {"train": 80, "dev": 6, "test": 10} and own.asked == 80
    assert not any("asked" in line for line in cost(load_config("mine.yaml", SMALL), 1_000).lines())
    for wrong, mention in (
        ("{name: own, template: '{query}'}", r"has \{query\} in its template, where \{passage\}"),
        ("nope", "no prompt named 'nope'.*question_few_shot"),
        ("{name: own, chat: true, template: '{passage}'}", "no chat template"),
    ):
        with pytest.raises((ConfigError, InputError), match=mention):
            check(load_config("mine.yaml", [*asked[:-1], f"queries.prompt={wrong}"]))
