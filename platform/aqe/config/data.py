"""The base model, and the index."""

import re
from pathlib import Path

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
    """The base model: a causal language model. It draws candidates, and alignment starts from it."""

    source: str = "package:smollm2-135m-instruct"
    """A Hugging Face hub id, a local directory, or `package:NAME` for a model that ships inside a Python package."""
    revision: str | None = None
    """Commit, branch or tag, for a hub id."""


class IndexConfig(Config):
    """The BM25 index and its settings."""

    path: Path | None = None
    """An existing Anserini index with the same docids as the corpus. `null` builds one from the corpus."""
    k1: float = Field(default=0.9, ge=0)
    """BM25's k1: how much a repeated word counts. Other values replace it only if dev clearly prefers them."""
    b: float = Field(default=0.4, ge=0, le=1)
    """BM25's b: how much long passages are discounted. Other values replace it only if dev clearly prefers them."""
    language: str = "en"
    """Lucene's analyzer, by ISO code. `en` is the English analyzer with Porter stems."""
    passages_per_shard: int = Field(default=4_000_000, ge=1)
    """Passages in one document shard of the impact index. Building a shard takes about 800 bytes of memory per
    passage."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that index. `null` means all cores of the machine that indexes."""
    jvm_heap: str = Field(default="1g", pattern=r"^\d+[mg]$")
    """Heap of each Java virtual machine, as in `-Xmx`."""
