"""Where the corpus, the queries and the base model come from."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aqe.config.base import Config

#: Begins the source of a model that ships inside a Python package.
PACKAGE = "package:"


def is_path(source: str, base_dir: Path = Path()) -> bool:
    """Whether a model's source is a path (below `base_dir`, if it is relative) rather than a hub id or a package's.

    A hub id is `name` or `owner/name`; all else, and what is there as a directory, is a path.
    """
    if source.startswith(PACKAGE):
        return False
    there = Path(base_dir, Path(source).expanduser()).is_dir()
    return there or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source) is None


class ModelConfig(Config):
    """A causal language model."""

    source: str = "package:smollm2-135m-instruct"
    """A Hugging Face hub id, a local directory, or `package:NAME` for a model that ships inside a Python package."""
    revision: str | None = None
    """Commit, branch or tag of a hub id."""


class FileCorpus(Config):
    """Passages in files with the columns docid, text and, if there is one, title."""

    format: Literal["parquet", "jsonl"]
    path: Path
    """A file, or a directory of files."""


class ReverseDictionary(Config):
    """The quickstart's corpus and queries, from two dictionaries that ship as Python packages."""

    format: Literal["reverse_dictionary"]


CorpusConfig = Annotated[FileCorpus | ReverseDictionary, Field(discriminator="format")]


class FileQueries(Config):
    """Queries in files with the columns qid, text and, where they are known, answers or positives."""

    format: Literal["parquet", "jsonl"]
    path: Path | list[Path]
    """A file (.gz allowed for JSONL), a directory of files, or a list of them."""
    without: tuple[Path, ...] = ()
    """Files of the same format whose questions are left out, before anything is skipped or counted."""
    skip: int = Field(default=0, ge=0)
    """Queries left out from the head of each file, after `order`."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many queries of each file; null means all."""
    order: Literal["file", "hash"] = "hash"
    """`hash`: in the order of the MD5 of their qid, so that a `limit` is a fair sample; `file`: as they lie."""

    @property
    def paths(self) -> list[Path]:
        return self.path if isinstance(self.path, list) else [self.path]


class ReverseDictionaryQueries(Config):
    """One split of the quickstart's queries."""

    format: Literal["reverse_dictionary"]
    split: Literal["train", "dev", "test"]
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)


def dataset_names(paths: Sequence[Path]) -> dict[Path, str]:
    """What the queries of each path are told apart by: the name of the file without suffixes, or of the directory.

    Where two are called alike, the directories above them are named too, as many as it takes.
    """
    paths = list(dict.fromkeys(paths))
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = {path: _suffixless("/".join(path.parts[-depth:])) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    return {path: str(path) for path in paths}


def _suffixless(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet")


QueriesConfig = Annotated[FileQueries | ReverseDictionaryQueries, Field(discriminator="format")]


Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


Sources = QueriesConfig | Annotated[tuple[QueriesConfig, ...], Field(min_length=1)]


class SplitsConfig(Config):
    """Queries to align on, to choose on, and to report on, each from one source or a list of them.

    No query may be in two of them.
    """

    train: Sources
    dev: Sources
    test: Sources

    def sources(self, split: Split) -> "tuple[FileQueries | ReverseDictionaryQueries, ...]":
        """Where the queries of a split come from."""
        sources = getattr(self, split)
        return sources if isinstance(sources, tuple) else (sources,)

    def datasets(self, split: Split) -> tuple[str, ...]:
        """The names of the datasets of a split, in order."""
        sources = self.sources(split)
        files = dataset_names([path for source in sources if isinstance(source, FileQueries) for path in source.paths])
        return (*files.values(), *dict.fromkeys(s.format for s in sources if not isinstance(s, FileQueries)))


class IndexConfig(Config):
    """The BM25 index."""

    path: Path | None = None
    """An Anserini index that is there already, with the corpus' docids; null means one is built from the corpus."""
    k1: float = Field(default=0.9, ge=0)
    b: float = Field(default=0.4, ge=0, le=1)
    language: str = "en"
    """Lucene's analyzer, by ISO code; `en` is the English analyzer with Porter stems."""
    passages_per_shard: int = Field(default=4_000_000, ge=1)
    """Passages of one document shard of the impact index; making one takes some 800 bytes of memory a passage."""
    threads: int | None = Field(default=None, ge=1)
    """Indexing threads; null means all cores of the machine that indexes."""
    jvm_heap: str = Field(default="1g", pattern=r"^\d+[mg]$")
    """Heap of each Java machine, as in `-Xmx`."""
