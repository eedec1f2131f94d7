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
    """Answers that are kept at most. 0 keeps none."""
    max_bytes: int = Field(default=64 << 20, ge=1024)
    """Memory that they take at most."""
    ttl_s: float = Field(default=3600, gt=0)
    """Seconds that an answer is kept."""


class SkipConfig(Config):
    """Queries that are searched as they are, without an expansion."""

    max_words: int | None = Field(default=None, ge=1)
    """Queries with more words than this get no expansion."""
    pattern: str | None = None
    """Queries that match this regular expression somewhere get no expansion: quoted phrases, part numbers."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class LimitsConfig(Config):
    """What one replica accepts before it refuses."""

    max_in_flight: int = Field(default=256, ge=1)
    """Requests in work or waiting. More are answered with 503 and Retry-After, but not a key that has none in work."""
    request_timeout_s: float = Field(default=30, gt=0)
    """Seconds until an answer must have begun. After that, the request is answered with 504."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests per minute of one API key, or of one address if there are no keys. More are answered with 429. `null`
    means no limit."""
    max_request_tokens: int = Field(default=131_072, ge=1)
    """Tokens that one request may make: its sequences (queries or prompts, times their expansions) times the tokens of
    each. More is answered with 422."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """The same for all requests of one API key (or address) in a minute. More is answered with 429. `null` means no
    limit."""
    beside_others: float = Field(default=0.25, gt=0, le=1)
    """Share of the engine's batch (`engine.max_batch`, 32 with the transformers engine) that one API key may fill while
    others ask too. Alone it may fill all of it. Sequences slow each other down: a small share keeps the others quick, a
    large one gives more throughput."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Bytes of a request body. Longer ones are answered with 413."""
    body_timeout_s: float = Field(default=10, gt=0)
    """Seconds in which a request's body must have arrived whole. After that, the request is answered with 408. Until
    then it takes no place of `max_in_flight`."""
    stuck_after_s: float = Field(default=60, gt=0)
    """Seconds after which an engine that has work and makes no step counts as dead. Its replica is replaced. Every
    token of any request is a step, whether it is sent at once or not."""


class SearchConfig(Config):
    """An index next to the expander, for POST /v1/search and the page."""

    impacts: Path
    """The artifact `build_impacts-...` of a run."""
    index: IndexConfig = IndexConfig()
    """BM25's settings, and the language that the index was built with."""
    corpus: Path | None = None
    """The artifact `corpus-...`, or a file or directory of Parquet with docid, title and text. Hits are shown from
    it."""
    queries: Path | None = None
    """Parquet of queries (qid, text) that the page offers as examples."""
    qrels: tuple[Path, ...] = ()
    """Parquet of the relevant passages of these queries (qid, docid, relevance). The page marks them in the results."""


class ServeConfig(Config):
    """Arguments of the application `serve.app:build`."""

    model: str = "package:smollm2-135m-instruct"
    """The model that is served: an aligned model's directory, a hub id, or `package:NAME`."""
    model_id: str | None = None
    """Name of the model in answers and requests. `null` makes it from the directory's name."""
    engine: EngineConfig = EngineConfig()
    """What generates text. `auto` takes vLLM with continuous batching if it is installed for this machine, otherwise
    transformers."""
    keys_file: Path | None = None
    """File with one API key per line. The variable AQE_API_KEYS (separated by commas) adds to them. Without any key,
    only requests from this machine are answered."""
    cache: CacheConfig = CacheConfig()
    """Answers that are kept for repeated queries."""
    skip: SkipConfig = SkipConfig()
    """Queries that get no expansion."""
    limits: LimitsConfig = LimitsConfig()
    """What one replica accepts."""
    search: SearchConfig | None = None
    """An index for POST /v1/search and the page. `null` serves expansions only."""
