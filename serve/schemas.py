"""Requests and answers of the service's own routes. The OpenAPI document is made from them."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from aqe.errors import InputError

MAX_QUERY_CHARS = 4_000
MAX_QUERIES = 256
#: Of one text among several. A longer one than a query may be is an error of its own and not of the whole body.
MAX_ITEM_CHARS = 20_000
MAX_EXPANSIONS = 50
MAX_TOKENS = 4_096
MAX_HITS = 100
#: Of several queries in one request.
MAX_HITS_TOGETHER = 2_560
#: Of one object in a request; none has so many fields.
MAX_KEYS = 64
#: Of a model's or a user's name, and of a docid.
MAX_NAME_CHARS = 1_000


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

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, body: Any) -> Any:
        # Each unknown key is an error of its own: a hundred thousand of them take half a second to be told.
        if isinstance(body, dict) and len(body) > MAX_KEYS:
            raise ValueError(f"more than {MAX_KEYS} keys")
        return body


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


Item = Annotated[str, StringConstraints(max_length=MAX_ITEM_CHARS), AfterValidator(_encodable)]


class ExpandOptions(Strict):
    """How queries are expanded."""

    num_expansions: int = Field(default=1, ge=1, le=MAX_EXPANSIONS)
    """The first is greedy, further ones are drawn."""
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Null is what the model was aligned for."""
    skip: bool = False
    """Answer with the query as it is: for comparisons, or where the caller knows better."""


class ExpandOne(ExpandOptions):
    """One query."""

    query: Query
    stream: bool = False
    """Server-sent events: `token` ({"text"}) as the expansion is written, then `done` (the answer), or `error`."""


class ExpandMany(ExpandOptions):
    """Several queries, answered together and in their order: each with its expansion, or with an error of its own."""

    queries: list[Item] = Field(min_length=1, max_length=MAX_QUERIES)


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
    """Kept from an earlier request of the same API key."""
    model: str
    milliseconds: float
    """From the request's arrival in the service."""


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


class Failed(Answer):
    """A query of several that has no answer; the others have."""

    query: str
    error: ErrorBody

    @classmethod
    def of(cls, query: str, wrong: InputError) -> "Failed":
        """With the words that the query alone would have been refused with."""
        return cls(query=query, error=ErrorBody(message=str(wrong), type="invalid_request_error", code=422))


class ExpandedMany(Answer):
    """Several queries with their expansions."""

    results: list[Expanded | Failed]
    model: str
    milliseconds: float


def _kind(body: Any) -> str:
    return "several" if isinstance(body, dict) and "queries" in body else "one"


#: Names of a union's members, which stand in the places of what is wrong.
MEMBERS = ("one", "several")
#: A body with `queries` is meant to be of several, whatever is wrong with it.
ONE_OR_SEVERAL = Discriminator(_kind)
ExpandBody = Annotated[Annotated[ExpandOne, Tag("one")] | Annotated[ExpandMany, Tag("several")], ONE_OR_SEVERAL]


class SearchOne(ExpandOptions):
    """A query to expand and search."""

    query: Query
    k: int = Field(default=10, ge=1, le=MAX_HITS)
    gold: list[Annotated[Text, Field(max_length=MAX_NAME_CHARS)]] = Field(default=[], max_length=100)
    """Docids of known relevant passages, whose exact ranks are wanted."""


class SearchMany(ExpandOptions):
    """Several queries to expand and search, answered in their order: each with its lists, or with an error."""

    queries: list[Item] = Field(min_length=1, max_length=MAX_QUERIES)
    k: int = Field(default=10, ge=1, le=MAX_HITS)
    """Times the number of queries at most 2560."""

    @model_validator(mode="after")
    def _few_hits(self) -> "SearchMany":
        # Each is shown twice, with its text: all at their most would be an answer of a hundred megabytes.
        if len(self.queries) * self.k > MAX_HITS_TOGETHER:
            raise ValueError(f"{len(self.queries)} queries times k {self.k} is more than {MAX_HITS_TOGETHER} hits")
        return self


SearchBody = Annotated[Annotated[SearchOne, Tag("one")] | Annotated[SearchMany, Tag("several")], ONE_OR_SEVERAL]


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


class SearchedMany(Answer):
    """Several queries with their result lists."""

    results: list[Searched | Failed]
    model: str
    milliseconds: float


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
