"""HTTP: each route turns a request into a call, and its result or error into an answer."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from aqe.errors import InputError
from aqe.observe import metrics
from serve.call import Call, call_of
from serve.completions import ChatRequest, CompletionRequest, Completions, UnknownModel
from serve.engine import RETRY_AFTER_S, EngineStopped
from serve.refused import Refused
from serve.schemas import (
    MEMBERS,
    ErrorAnswer,
    Examples,
    ExpandBody,
    Expanded,
    ExpandedMany,
    ExpandMany,
    Health,
    Models,
    SearchBody,
    Searched,
    SearchedMany,
    SearchMany,
    error,
)
from serve.searching import ExpandAndSearch
from serve.service import ExpandService

PAGE = Path(__file__).parent / "page"
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": about}
    for code, about in {
        400: "Not JSON",
        401: "No valid API key",
        404: "Not here",
        408: "The body did not come in time",
        413: "The body is too large",
        422: "Something in the request is wrong; the message says what",
        429: "Too many requests; wait as Retry-After says",
        503: "Too much work at the moment; wait as Retry-After says",
        504: "No answer in time",
    }.items()
}
#: Of the OpenAPI page alone: its viewer writes styles into its elements.
DOCS_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
#: A route answers with JSON, or with server-sent events where `stream` asks for them.
EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}
#: Who asks. The guard knows.
Asked = Annotated[Call, Depends(call_of)]
DESCRIPTION = """One expansion of a search query, from a language model that was aligned with BM25's ranks
(Aligned Query Expansion, arXiv 2507.11042). Search with `composed` in place of the query."""


def make_api(service: ExpandService, searcher: Any = None) -> FastAPI:
    """The application. `searcher` has the methods of `serve.search.Searcher`, here or on another machine."""
    api = FastAPI(title="aqe", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None, responses=ERRORS)
    _add_errors(api)
    _add_expand(api, service)
    _add_search(api, service, searcher)
    _add_completions(api, Completions(service))
    _add_page(api)

    @api.get("/v1/models")
    async def models() -> Models:
        """What is served."""
        return Models(data=[service.describe()])

    @api.get("/healthz")
    async def healthz() -> Health:
        """The service answers."""
        return Health()

    @api.get("/readyz")
    async def readyz() -> Health:
        """The engine answers too: 503 when it is dead or stuck."""
        await service.check()
        return Health()

    return api


def _add_expand(api: FastAPI, service: ExpandService) -> None:
    @api.post("/v1/expand", response_model=Expanded | ExpandedMany, responses=STREAMS)
    async def expand(body: ExpandBody, call: Asked) -> Any:
        """Expand a query, or several together: search with `composed` in place of the query.

        Of several each has its own result or error, and the answer is 200.
        """
        if isinstance(body, ExpandMany):
            return _json(await service.expand_many(body, call))
        if body.stream:
            return await _events(service.stream(body.query, body, call), _expand_event, error_head="event: error\n")
        return _json(await service.expand(body.query, body, call))


def _add_search(api: FastAPI, service: ExpandService, searcher: Any) -> None:
    both = ExpandAndSearch(service, searcher)

    @api.post("/v1/search", response_model=Searched | SearchedMany)
    async def search(body: SearchBody, call: Asked) -> Any:
        """Expand a query, or several, then search with it and without: both lists, and which term brought which
        passage up. Of several each has its own result or error, and the answer is 200."""
        if searcher is None:
            raise HTTPException(404, "No index is mounted with this expander: set `search` in the application's args.")
        return _json(await (both.many(body, call) if isinstance(body, SearchMany) else both.one(body, call)))

    @api.get("/v1/examples")
    async def examples() -> Examples:
        """Known queries with their relevant passages; none where none were mounted."""
        return Examples.model_validate({"examples": await searcher.examples() if searcher else []})


def _add_completions(api: FastAPI, completions: Completions) -> None:
    @api.post("/v1/completions", responses=STREAMS)
    async def complete(body: CompletionRequest, call: Asked) -> Any:
        """OpenAI's completions: the prompt as it is, not a query."""
        if body.stream:
            return await _openai_events(await completions.complete_stream(body, call))
        return _json(await completions.complete(body, call))

    @api.post("/v1/chat/completions", responses=STREAMS)
    async def chat(body: ChatRequest, call: Asked) -> Any:
        """OpenAI's chat completions, for models that have a chat template."""
        if body.stream:
            return await _openai_events(await completions.chat_stream(body, call))
        return _json(await completions.chat(body, call))


def _add_page(api: FastAPI) -> None:
    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html", headers={"content-security-policy": DOCS_POLICY})

    # Swagger's viewer from a package, not from a third party's host.
    api.mount("/page/swagger", StaticFiles(packages=[("fastapi_offline", "static")]))
    api.mount("/page", StaticFiles(directory=PAGE))


def _add_errors(api: FastAPI) -> None:
    """All errors in one form."""

    def answer(code: int, kind: str, message: str, param: str | None = None) -> JSONResponse:
        metrics.count(metrics.ERRORS, 1, type=kind)
        return JSONResponse(error(code, kind, message, param), code)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, raised: RequestValidationError) -> Response:
        problems = raised.errors()
        if any(problem["type"] == "json_invalid" for problem in problems):
            return answer(400, "invalid_request_error", "The body is not JSON.")
        # A union's member is no name that the client knows.
        places = [[str(part)[:100] for part in problem["loc"][1:] if part not in MEMBERS] for problem in problems]
        said = [f"{'.'.join(place)}: {p['msg']}" for place, p in zip(places, problems, strict=True)]
        return answer(422, "invalid_request_error", "; ".join(said[:5]), ".".join(places[0]) or None)

    @api.exception_handler(UnknownModel)
    async def unknown(request: Request, raised: UnknownModel) -> Response:
        return answer(404, "model_not_found", str(raised), "model")

    @api.exception_handler(Refused)
    async def refused(request: Request, raised: Refused) -> Response:
        said = answer(raised.code, raised.kind, raised.message)
        said.headers.update(raised.headers)
        return said

    @api.exception_handler(InputError)
    async def wrong(request: Request, raised: InputError) -> Response:
        return answer(422, "invalid_request_error", str(raised))

    @api.exception_handler(EngineStopped)
    async def stopped(request: Request, raised: EngineStopped) -> Response:
        said = answer(503, "overloaded", f"{raised}; another is being started. Send the request again.")
        said.headers["retry-after"] = str(RETRY_AFTER_S)
        return said

    @api.exception_handler(Exception)
    async def failed(request: Request, raised: Exception) -> Response:
        # The guard logs it; its message could hold what a stranger must not see.
        return answer(500, "internal_error", "The service has met an error of its own; see its log.")

    @api.exception_handler(HTTPException)
    async def http(request: Request, raised: HTTPException) -> Response:
        kind = "not_found" if raised.status_code == 404 else "invalid_request_error"
        said = answer(raised.status_code, kind, str(raised.detail))
        said.headers.update(raised.headers or {})
        return said


def _json(body: BaseModel) -> Response:
    # Pydantic writes it at once; FastAPI would take it apart and check it again first.
    return Response(body.model_dump_json(), media_type="application/json")


async def _stream(events: AsyncGenerator[str]) -> StreamingResponse:
    """Answers once the first event is there, so that what is wrong before it has a status of its own."""
    first = await anext(events, None)

    async def body() -> AsyncGenerator[str]:
        async with aclosing(events):
            if first is not None:
                yield first
            async for event in events:
                yield event

    return StreamingResponse(body(), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(
    source: AsyncGenerator[Any], event: Callable[[Any], str], *, error_head: str = "", end: str = ""
) -> StreamingResponse:
    """Server-sent events. An engine that stops before the first of them is an error with a status of its own."""

    async def events() -> AsyncGenerator[str]:
        begun = False
        async with aclosing(source):
            try:
                async for new in source:
                    begun = True
                    yield event(new)
                if end:
                    yield end
            except EngineStopped as stopped:
                if not begun:
                    raise
                yield f"{error_head}data: {json.dumps(error(503, 'overloaded', str(stopped)))}\n\n"

    return await _stream(events())


def _expand_event(new: str | Expanded) -> str:
    if isinstance(new, str):
        return f"event: token\ndata: {json.dumps({'text': new})}\n\n"
    return f"event: done\ndata: {new.model_dump_json()}\n\n"


async def _openai_events(chunks: AsyncGenerator[Any]) -> StreamingResponse:
    return await _events(
        chunks, lambda chunk: f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n", end="data: [DONE]\n\n"
    )
