"""An index that is there already: what leads to it, wherever it lies."""

from pathlib import Path

import pytest

from aqe.config.data import IndexConfig
from aqe.config.pipeline import PipelineConfig
from aqe.config.sources import AnseriniCorpus
from aqe.index import stage
from aqe.run import Run


def test_an_index_that_was_moved_is_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_same_corpus", lambda *_: None)
    run = Run(tmp_path / "runs", lambda line: None)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "segments_1").write_text("commit")
    corpus = run.make("corpus", config={}, inputs={}, build=lambda out: {"passages": 1, "dead": 0, "index": str(old)})
    made = stage.lucene_index(run, IndexConfig(), corpus=corpus)
    assert (made.path / "lucene").resolve() == old
    old.rename(new)
    again = stage.lucene_index(run, IndexConfig(path=new), corpus=corpus)
    assert again.path == made.path and (again.path / "lucene" / "segments_1").read_text() == "commit"
    assert sorted(path.name for path in new.iterdir()) == ["segments_1"]


def test_the_index_of_a_corpus_lies_where_the_configuration_says(tmp_path: Path) -> None:
    source = {"format": "jsonl", "path": "q.jsonl"}
    queries = {split: source for split in ("train", "dev", "test")}
    config = PipelineConfig.model_validate(
        {"name": "a", "corpus": {"format": "anserini", "path": tmp_path / "new"}, "queries": queries}
    )
    assert config.given_index.path == tmp_path / "new"
    named = config.model_copy(update={"index": IndexConfig(path=tmp_path / "other")})
    assert named.given_index.path == tmp_path / "other"
    fetched = config.model_copy(update={"corpus": AnseriniCorpus(format="anserini", prebuilt="some")})
    assert fetched.given_index.path is None
