"""Requests and answers of the service's own routes. The OpenAPI document is made from them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

MAX_QUERY_CHARS = 4_000
MAX_QUERIES = 256
MAX_EXPANSIONS = 50
MAX_TOKENS = 4_096
MAX_HITS = 100


def _encodable(text: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no tokenizer and no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: it holds a lone surrogate") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Query = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS, pattern=r"\S"), AfterValidator(_encodable)
]


class Strict(BaseModel):
    """A request: unknown keys and wrong types are refused, so that a typing error is not passed over in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class _Options(Strict):
    num_expansions: int = Field(default=1, ge=1, le=MAX_EXPANSIONS)
    """The first is greedy, further ones are drawn."""
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Null is what the model was aligned for."""
    skip: bool = False
    """Answer with the query as it is: for comparisons, or where the caller knows better."""


class ExpandOne(_Options):
    """One query."""

    query: Query
    stream: bool = False
    """Server-sent events: `token` ({"text"}) as the expansion is written, then `done` (the answer), or `error`."""


class ExpandMany(_Options):
    """Several queries, answered together and in their order."""

    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)


class Alternative(Answer):
    """A further expansion."""

    expansion: str
    composed: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]


class Expanded(Answer):
    """A query with its expansion."""

    query: str
    expansion: str
    """What the model added; may be empty."""
    composed: str
    """Search with this."""
    num_tokens: int
    finish_reason: Literal["stop", "length", "skip"]
    """`length`: cut at max_tokens; `skip`: not expanded, because the request or a rule says so."""
    alternatives: list[Alternative] = []
    cached: bool
    model: str
    milliseconds: float
    """From the request's arrival in the service."""


class ExpandedMany(Answer):
    """Several queries with their expansions."""

    results: list[Expanded]
    model: str
    milliseconds: float


class SearchRequest(_Options):
    """A query to expand and search."""

    query: Query
    k: int = Field(default=10, ge=1, le=MAX_HITS)
    gold: list[Text] = Field(default=[], max_length=100)
    """Docids of known relevant passages, whose exact ranks are wanted."""


class TermScore(Answer):
    """What one term of the composed query gives a passage."""

    term: str
    """As it is indexed."""
    words: list[str]
    """As it was written."""
    source: Literal["query", "expansion", "both"]
    score: float


class SearchHit(Answer):
    """A passage of a result list."""

    rank: int
    docid: str
    score: float
    title: str | None = None
    text: str | None = None
    rank_other: int | None
    """Its exact rank in the other list, however far down; null where the other search does not find it."""
    terms: list[TermScore]
    """What makes up its score, highest first."""
    gold: bool = False


class GoldPassage(Answer):
    """Exact ranks of a known relevant passage; null where the search does not find it."""

    docid: str
    title: str | None = None
    plain_rank: int | None
    expanded_rank: int | None


class Timing(Answer):
    """Milliseconds of each part."""

    expand: float
    search_plain: float
    search_expanded: float
    explain: float
    total: float


class Searched(Answer):
    """Both result lists."""

    expanded: Expanded
    plain_hits: list[SearchHit]
    expanded_hits: list[SearchHit]
    gold: list[GoldPassage]
    milliseconds: Timing


class Example(Answer):
    """A known query and its relevant passages."""

    query: str
    gold: list[str]


class Examples(Answer):
    """Known queries to try."""

    examples: list[Example]


class Model(Answer):
    """A served model; the first four fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    engine: str
    prompt: str
    max_tokens: int
    max_model_len: int
    aligned: bool
    """False for a base model, which nobody has taught to expand."""
    search: bool
    """An index is mounted: POST /v1/search works."""


class Models(Answer):
    """What is served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(Answer):
    """Alive, or ready."""

    status: Literal["ok"] = "ok"


class ErrorBody(Answer):
    """OpenAI's form of an error, on all routes."""

    message: str
    type: str
    code: int
    param: str | None = None


class ErrorAnswer(Answer):
    """Any answer with a status of 400 or more."""

    error: ErrorBody


def error(code: int, kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return ErrorAnswer(error=ErrorBody(message=message, type=kind, code=code, param=param)).model_dump()
