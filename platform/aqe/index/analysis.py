"""Text -> terms for queries: the analyzer that the index was built with."""

from collections.abc import Callable

from aqe.index import jvm
from aqe.index.lucene import analyzer

#: Part of what is ranked or searched with Python's analysis: raised when that gives other terms than it did.
VERSION = 2
#: Whose version changes a query's terms.
PACKAGES = ("nltk", "PyStemmer")

Analyze = Callable[[str], list[str]]


def needs_java(language: str) -> bool:
    """Whether queries of this language are analyzed by Lucene itself."""
    return language != "en"


def query_analyzer(language: str, heap: str) -> Analyze:
    """Terms of a text as Anserini's index of this language has them; starts this process' JVM for all but English.

    Raises ConfigError for a language that Anserini has no analyzer for.
    """
    if not needs_java(language):
        from aqe.index.english import analyze

        return analyze
    java = jvm.start(heap)
    lucene, tokens = analyzer(java, language), java("io.anserini.analysis.AnalyzerUtils")
    return lambda text: [str(term) for term in tokens.analyze(lucene, text)]
