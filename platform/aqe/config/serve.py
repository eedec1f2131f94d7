"""The endpoint: which model it serves, and what it allows. Where and how often it runs is Ray Serve's configuration."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from aqe.config.base import Config
from aqe.config.data import IndexConfig
from aqe.config.sample import EngineConfig


class CacheConfig(Config):
    """Answers that a replica keeps for repeated queries."""

    size: int = Field(default=10_000, ge=0)
    """Answers, at most; 0 keeps none."""
    ttl_s: float = Field(default=3600, gt=0)
    """Seconds that an answer is kept."""


class SkipConfig(Config):
    """Queries that are searched as they are, without an expansion."""

    max_words: int | None = Field(default=None, ge=1)
    """Queries with more words than this need none."""
    pattern: str | None = None
    """Queries in which this regular expression is found need none: quoted phrases, part numbers."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class LimitsConfig(Config):
    """What one replica takes before it says no."""

    max_in_flight: int = Field(default=256, ge=1)
    """Requests in work or waiting; more are answered with 503 and Retry-After."""
    request_timeout_s: float = Field(default=30, gt=0)
    """Seconds until an answer must have begun; 504 after them."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Of one API key, or of one address where there are no keys; 429 above it. Null is no limit."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Longer request bodies are answered with 413."""
    stuck_after_s: float = Field(default=60, gt=0)
    """An engine that has work and makes no token for so long counts as dead, and the replica is replaced."""


class SearchConfig(Config):
    """An index beside the expander, for POST /v1/search and the page."""

    impacts: Path
    """The artifact of build_impacts."""
    index: IndexConfig = IndexConfig()
    """BM25's settings and the language that the index was made with."""
    corpus: Path | None = None
    """The artifact `corpus`, or a directory or file of Parquet with docid, title and text: what is shown of a hit."""
    queries: Path | None = None
    """Parquet of queries (qid, text): examples on the page."""
    qrels: tuple[Path, ...] = ()
    """Parquet of their relevant passages (qid, docid, relevance): marked in the results of an example."""


class ServeConfig(Config):
    """Arguments of the application `serve.app:build`."""

    model: str = "package:smollm2-135m-instruct"
    """An aligned model's directory, a hub id, or `package:NAME`."""
    model_id: str | None = None
    """Name of the model in answers and requests; null makes it from the directory's name."""
    engine: EngineConfig = EngineConfig()
    """`auto`: vLLM with continuous batching where it is installed for this machine, else transformers."""
    keys_file: Path | None = None
    """API keys, one a line; the variable AQE_API_KEYS (separated by commas) adds to them. Without any, only requests
    from this machine are answered."""
    cache: CacheConfig = CacheConfig()
    skip: SkipConfig = SkipConfig()
    limits: LimitsConfig = LimitsConfig()
    search: SearchConfig | None = None
