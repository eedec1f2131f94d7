"""The endpoint: which model it serves, and what it allows. Where and how often it runs is Ray Serve's configuration."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from aqe.config.base import Config
from aqe.config.data import IndexConfig
from aqe.config.sample import EngineConfig


class CacheConfig(Config):
    """Answers that a replica keeps for repeated queries of the same API key."""

    size: int = Field(default=10_000, ge=0)
    """Answers, at most; 0 keeps none."""
    max_bytes: int = Field(default=64 << 20, ge=1024)
    """Memory that they take, at most."""
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
    """Requests in work or waiting; more are answered with 503 and Retry-After, but for a key that has none."""
    request_timeout_s: float = Field(default=30, gt=0)
    """Seconds until an answer must have begun; 504 after them."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Of one API key, or of one address where there are no keys; 429 above it. Null is no limit."""
    max_request_tokens: int = Field(default=131_072, ge=1)
    """Tokens that one request may make: its sequences (queries or prompts, times their expansions) times the tokens of
    each. More is answered with 422."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """The same, of all requests of one API key (or address) in a minute; 429 above it. Null is no limit."""
    beside_others: float = Field(default=0.25, gt=0, le=1)
    """Share of the engine's batch (engine.max_batch) that one API key may fill while others ask, too; alone it may fill
    all. Sequences slow each other down, so a small share keeps the others quick, and a large one is more throughput."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Longer request bodies are answered with 413."""
    body_timeout_s: float = Field(default=10, gt=0)
    """Seconds in which a request's body must have come whole; 408 after them. Until then it takes no place of
    max_in_flight."""
    stuck_after_s: float = Field(default=60, gt=0)
    """An engine that has work and makes no step for so long counts as dead, and the replica is replaced. Every token of
    any request is a step, whether it is handed on at once or not."""


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
