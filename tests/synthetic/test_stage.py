"""A corpus without judgements becomes judged train, dev and test queries, written by a tiny model."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aqe.artifact import Artifact, load, write_parquet
from aqe.base_model import LanguageModel
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.config.sample import EngineConfig, PromptConfig, SampleConfig
from aqe.config.splits import SplitsConfig
from aqe.corpus.stage import ingest_queries, judge_queries
from aqe.errors import InputError
from aqe.impacts.gold import open_gold_ranker
from aqe.rank.retriever import Retriever
from aqe.records import CORPUS, SAMPLES, SEARCHED, table
from aqe.run import Run
from aqe.synthetic.passages import ASKED
from aqe.synthetic.stage import asking, clean_queries, keep_queries, write_queries
from tests.corpus.test_passages import write_lines
from tests.impacts.test_gold import build
from tests.tools import tiny_model

#: The tiny model's tokens are characters: examples would fill its context.
PROMPT = {"name": "tiny", "template": "Passage: {passage}\nQuery:", "stop": ["\n"]}
SYNTHETIC = {"format": "synthetic", "from": "corpus", "number": 120, "prompt": PROMPT, "depth": 60}
SAMPLE = SampleConfig(num_samples=1, queries_per_unit=16)
ENGINE = EngineConfig(name="transformers", max_model_len=512, workers=1)


def passages() -> list[dict[str, Any]]:
    """Of words, and of the single characters that the random model writes."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("bcdefgh", k=3)) for _ in range(30)] + list("bcdefghjklmnopqrstuvwxyz0123456789")
    rows = [{"docid": f"d{i:03d}", "title": "", "text": " ".join(draw.choices(vocabulary, k=14))} for i in range(160)]
    return [*rows, *({"docid": f"s{i}", "title": "", "text": "b c"} for i in range(20))]


def make(run: Run, stage: str, files: dict[str, Any], **stats: int) -> Artifact:
    def fill(out: Path) -> dict[str, int]:
        for name, data in files.items():
            write_parquet(data, out / f"{name}.parquet", 4)
        return stats

    return run.make(stage, config={}, inputs={}, build=fill)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, said: list[str]) -> Run:
    return Run(tmp_path / "run", said.append)


@pytest.fixture
def corpus(run: Run) -> Artifact:
    return make(run, "corpus", {"data/0": table(passages(), CORPUS)})


@pytest.fixture
def retriever(run: Run) -> Iterator[Retriever]:
    def fill(out: Path) -> dict[str, int]:
        build(out, {row["docid"]: row["text"].split() for row in passages()})
        return {}

    yield Retriever(run.make("build_impacts", config={}, inputs={}, build=fill), RankConfig(workers=1), IndexConfig())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    path = tiny_model.save(tmp_path_factory.mktemp("model") / "model", max_position_embeddings=512)
    return LanguageModel(path, "tiny", "f" * 16, None)


def ingest(run: Run, config: SplitsConfig, retriever: Retriever, corpus: Artifact, model: LanguageModel) -> Artifact:
    asked = asking(config, SAMPLE, ENGINE)
    written = write_queries(run, config, asked, retriever, corpus=corpus, model=model)
    return ingest_queries(run, config, written=written)


def rows(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = artifact.read(name).to_pylist()
    return found


def only(run: Run, stage: str) -> Artifact:
    (path,) = run.root.glob(f"{stage}-*")
    return load(path)


def test_from_one_line_of_configuration_to_judged_queries(
    ray_cluster: None, run: Run, said: list[str], retriever: Retriever, corpus: Artifact, model: LanguageModel
) -> None:
    config = SplitsConfig.model_validate({**SYNTHETIC, "split": {"train": 0.6, "dev": 0.2, "test": 0.2}})
    queries = ingest(run, config, retriever, corpus, model)
    of = {split: rows(queries, split) for split in ("train", "dev", "test")}
    everything = [row for split in of.values() for row in split]
    # A query has one passage, and a passage one query, in one split; it is no short one.
    docids = [docid for row in everything for docid in row["positives"]]
    assert len(docids) == len(set(docids)) == len(everything) == len({row["text"] for row in everything})
    assert all(docid.startswith("d") for docid in docids)
    assert {row["dataset"] for row in everything} == {"synthetic"}
    # Only training queries are filtered.
    ranker = open_gold_ranker(retriever.index.path, retriever.bm25)
    ranks = {row["qid"]: ranker.gold_ranks([row["text"]], row["positives"])[0] for row in everything}
    assert all(1 < ranks[row["qid"]].rank <= 60 and ranks[row["qid"]].found for row in of["train"])
    drafts = rows(only(run, "synthetic_drafts"), "queries")
    for split in ("dev", "test"):
        assert {row["qid"] for row in of[split]} == {row["qid"] for row in drafts if row["key"] == split}
    held_out = [ranks[row["qid"]] for row in (*of["dev"], *of["test"])]
    assert not all(1 < rank.rank <= 60 and rank.found for rank in held_out)
    # What falls away is told, with the reason, and can be read.
    letters = [
        *rows(only(run, "synthetic_drafts"), "dead_letters"),
        *rows(only(run, "synthetic_queries"), "dead_letters"),
    ]
    assert len(letters) + len(everything) == 120
    assert {"no text", "fewer than 3 words", "did not end"} <= {letter["reason"] for letter in letters}
    assert any(f"train: {len(of['train']):,} kept; set aside: " in line for line in said)
    judged = judge_queries(run, split="test", corpus=corpus, queries=queries)
    assert [row["relevant"] for row in rows(judged, "queries")] == [row["positives"] for row in of["test"]]
    # From the queries one can walk back to what they were written of.
    assert queries.manifest["parents"] == [only(run, "synthetic_queries").path.name]


def test_a_run_that_was_stopped_ends_in_the_same_queries(
    ray_cluster: None, run: Run, said: list[str], retriever: Retriever, corpus: Artifact, model: LanguageModel
) -> None:
    config = SplitsConfig.model_validate(SYNTHETIC)
    whole = ingest(run, config, retriever, corpus, model)
    first = {split: rows(whole, split) for split in ("train", "dev", "test")}
    said.clear()
    again = ingest(run, config, retriever, corpus, model)
    assert again.path == whole.path and not any("made in" in line for line in said)
    # Stopped while the model was asked: what is finished is kept, and the rest comes out as it was.
    sampled = only(run, "synthetic_sample").path
    (sampled / "manifest.json").unlink()
    units = sorted((sampled / "data").glob("*.parquet"))
    assert len(units) == 8
    for unit in units[5:]:
        unit.unlink()
    kept = {unit: unit.stat().st_mtime_ns for unit in units[:5]}
    for stage in ("synthetic_drafts", "synthetic_search", "synthetic_queries", "queries"):
        shutil.rmtree(only(run, stage).path)
    resumed = ingest(run, config, retriever, corpus, model)
    assert kept == {unit: unit.stat().st_mtime_ns for unit in units[:5]}
    assert resumed.path == whole.path
    assert {split: rows(resumed, split) for split in ("train", "dev", "test")} == first


def test_own_test_queries_beside_synthetic_ones(
    ray_cluster: None, run: Run, tmp_path: Path, retriever: Retriever, corpus: Artifact, model: LanguageModel
) -> None:
    own = write_lines(tmp_path / "own.jsonl", {"qid": "q1", "text": "b c d", "positives": ["d001"]})
    mixed = [{"format": "jsonl", "path": str(own)}, {**SYNTHETIC, "number": 20}]
    config = SplitsConfig.model_validate({"train": {**SYNTHETIC, "number": 70}, "dev": mixed, "test": mixed[0]})
    queries = ingest(run, config, retriever, corpus, model)
    assert [row["qid"] for row in rows(queries, "test")] == ["q1"]
    # The file's question stands in test too.
    assert {row["dataset"] for row in rows(queries, "dev")} == {"synthetic"}
    asked = rows(only(run, "synthetic_passages"), "queries")
    assert [row["key"] for row in asked] == ["dev"] * 20 + ["train"] * 70
    dev, train = ({row["positives"][0] for row in rows(queries, split)} for split in ("dev", "train"))
    assert dev and train
    assert dev <= {row["docid"] for row in asked[:20]} and train <= {row["docid"] for row in asked[20:]}


def artifacts(run: Run, texts: list[str]) -> tuple[Artifact, Artifact]:
    """Passages, and what was written of each."""
    asked = [{"qid": f"synthetic-{i}", "text": "x", "docid": str(i), "key": "train"} for i in range(len(texts))]
    answers = [
        {"qid": row["qid"], "raw": text, "expansion": " ".join(text.split()), "finish_reason": "stop"}
        for row, text in zip(asked, texts, strict=True)
    ]
    passages = make(run, "synthetic_passages", {"queries": table(asked, ASKED)})
    return passages, make(run, "synthetic_sample", {"data/0": table(answers, SAMPLES)})


TRAIN = SplitsConfig.model_validate(
    {"train": SYNTHETIC, "dev": {"format": "jsonl", "path": "a"}, "test": {"format": "jsonl", "path": "b"}}
)


def test_a_model_that_writes_no_query_is_told(run: Run) -> None:
    passages, answers = artifacts(run, ["", "one two", "\n"])
    with pytest.raises(InputError, match=r"of 3 answers .* none is a query: 2 no text, 1 fewer than 3 words"):
        clean_queries(run, TRAIN, PromptConfig.model_validate(PROMPT), passages=passages, answers=answers)


def test_training_queries_that_teach_nothing_are_told(run: Run, said: list[str]) -> None:
    texts = ["where is the first", "where is the second", "where is the third", "Where is the third?"]
    passages, answers = artifacts(run, texts)
    prompt = PromptConfig.model_validate(PROMPT)
    drafts = clean_queries(run, TRAIN, prompt, passages=passages, answers=answers)
    assert any("3 of 4 answers are queries; set aside: 1 another passage has the same query" in line for line in said)
    found = [
        {"qid": f"synthetic-{i}", "gold_rank": rank, "score": score}
        for i, (rank, score) in enumerate([(1, 2.0), (61, 1.0), (9, 0.0)])
    ]
    searched = make(run, "synthetic_search", {"data/0": table(found, SEARCHED)})
    reasons = (
        "1 BM25 does not find its passage, 1 BM25 finds its passage beyond rank 60, 1 BM25 finds its passage first"
    )
    with pytest.raises(InputError, match=rf"queries\.train: no synthetic query is left of 3; set aside: {reasons}"):
        keep_queries(run, TRAIN, drafts=drafts, found=searched)
    # All of them are kept where nothing is filtered.
    config = TRAIN.model_copy(update={"train": TRAIN.dev, "test": TRAIN.train})
    held_out = make(run, "held_out", {"queries": _as_test(drafts)})
    kept = keep_queries(run, config, drafts=held_out, found=searched)
    assert kept.read("test/synthetic").num_rows == 3 and not (kept.path / "train").exists()


def _as_test(drafts: Artifact) -> Any:
    queries = drafts.read("queries")
    return queries.set_column(queries.schema.get_field_index("key"), "key", [["test"] * queries.num_rows])
