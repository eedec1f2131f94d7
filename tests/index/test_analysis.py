"""What of the analysis is part of a result's name."""

from importlib import metadata
from pathlib import Path

import pytest

from aqe.artifact import Artifact
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.index import analysis
from aqe.rank import retriever
from aqe.rank.retriever import Retriever


def of(engine: str, language: str) -> Retriever:
    config = RankConfig.model_validate({"engine": engine})
    return Retriever(Artifact(Path("index"), {}), config, IndexConfig(language=language))


def test_every_package_of_the_analysis_is_found() -> None:
    # A name that is not found would be left out of the fingerprint in silence.
    assert set(analysis.PACKAGES) == {"nltk", "PyStemmer"}
    assert all(metadata.version(name) for name in analysis.PACKAGES)


def test_ranks_with_pythons_analysis_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    python = of("impacts", "en")
    assert python.packages == analysis.PACKAGES
    before = python.settings()
    monkeypatch.setattr(retriever, "VERSION", analysis.VERSION + 1)
    assert python.settings() != before


@pytest.mark.parametrize(("engine", "language"), [("lucene", "en"), ("impacts", "de"), ("lucene", "de")])
def test_ranks_with_lucenes_analysis_do_not(engine: str, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    java = of(engine, language)
    assert java.packages == ()
    before = java.settings()
    monkeypatch.setattr(retriever, "VERSION", analysis.VERSION + 1)
    assert java.settings() == before
