"""The service's web page in a real browser (Debian's chromium), against a real HTTP server with canned answers."""

import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from serve import schemas
from serve.schemas import Expanded, GoldPassage, SearchHit, TermScore
from tests.tools.waiting import http_server

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

PAGE = Path(__file__).parents[2] / "serve" / "page"
CSP = (
    "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
QUERY = "a threadlike strand of DNA in the cell nucleus"
TOKENS = [" chromosome", " gene", " genetic", " material", " chromatin", " heredity"]
EXPANSION = "".join(TOKENS).strip()
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def terms(**scores: float) -> list[TermScore]:
    """`query_strand=4.2` is the word `strand` of the query."""
    return [
        TermScore.model_validate({"source": source, "term": word[:6], "words": [word], "score": score})
        for (source, word), score in ((name.split("_"), score) for name, score in scores.items())
    ]


def hit(
    rank: int, other: int | None, title: str | None, text: str | None, gold: bool = False, **scores: float
) -> SearchHit:
    return SearchHit(
        rank=rank, docid=f"gcide:{title}", score=sum(scores.values()), title=title, text=text, rank_other=other,
        terms=terms(**scores), gold=gold,
    )  # fmt: skip


LONG = "A body, usually spheroidal, in a eukaryotic cell. " * 20
PLAIN_HITS = [
    hit(1, 2, "nucleus", LONG, query_nucleus=6.9, query_cell=5.1),
    hit(2, 1340, "strand", "One of the twists of which a rope is composed.", query_strand=8.3, query_threadlike=5.8),
    hit(3, 3, None, None, query_cell=11.7),
]
CHROMOSOME = {
    "expansion_chromosome": 12.2, "expansion_chromatin": 7.7, "query_nucleus": 6.9, "both_cell": 2.1,
    "expansion_material": 1.0, "query_in": 0.9, "query_the": 0.6,
}  # fmt: skip
EXPANDED_HITS = [
    hit(1, 812, "chromosome", "Bodies into which the chromatin of the nucleus is resolved.", gold=True, **CHROMOSOME),
    hit(2, 1, "nucleus", LONG, query_nucleus=6.9, query_cell=5.1),
    hit(3, 3, None, None, query_cell=11.7),
]


@dataclass
class Service:
    """Canned answers, and what was asked for."""

    url: str = ""
    expansion: str = EXPANSION
    tokens: list[str] = field(default_factory=lambda: list(TOKENS))
    gate: threading.Semaphore | None = None
    """Where set, each token waits for a release."""
    model: dict[str, Any] = field(default_factory=dict)
    gold_ranks: tuple[int | None, int | None] = (812, 1)
    """Of every gold passage, without the expansion and with it."""
    plain_hits: list[SearchHit] = field(default_factory=lambda: list(PLAIN_HITS))
    expanded_hits: list[SearchHit] = field(default_factory=lambda: list(EXPANDED_HITS))
    examples: list[schemas.Example] = field(
        default_factory=lambda: [
            schemas.Example(query=QUERY, gold=["gcide:chromosome"]),
            schemas.Example(query="a person who sells flowers", gold=["gcide:77"]),
        ]
    )
    key: str | None = None
    failures: dict[str, tuple[int, str, dict[str, str]]] = field(default_factory=dict)
    """Path -> status, message and headers of its answer."""
    breaks: str | None = None
    """`error`: the stream ends with this event; `off`: it just ends."""
    finish_reason: str = "stop"
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.asked if asked == path]

    def expanded(self, query: str) -> Expanded:
        return Expanded.model_validate({
            "query": query, "expansion": self.expansion, "composed": f"{query} {query} {self.expansion}".strip(),
            "num_tokens": len(self.tokens), "finish_reason": self.finish_reason, "cached": False, "model": "tiny", "milliseconds": 643.2,
        })  # fmt: skip

    def stream(self, query: str) -> Iterator[str]:
        for token in self.tokens:
            if self.gate:
                self.gate.acquire(timeout=30)
            yield f"event: token\ndata: {json.dumps({'text': token})}\n\n"
        if self.breaks == "error":
            yield f"event: error\r\ndata: {json.dumps(schemas.error(500, 'server_error', 'the engine died'))}\r\n\r\n"
        if self.breaks is None:
            yield f"event: done\ndata: {self.expanded(query).model_dump_json()}\n\n"

    def searched(self, body: dict[str, Any]) -> schemas.Searched:
        return schemas.Searched(
            expanded=self.expanded(body["query"]),
            plain_hits=self.plain_hits,
            expanded_hits=self.expanded_hits,
            gold=[
                GoldPassage(
                    docid=docid, title="chromosome", plain_rank=self.gold_ranks[0], expanded_rank=self.gold_ranks[1]
                )
                for docid in body["gold"]
            ],
            milliseconds=schemas.Timing(expand=0.1, search_plain=7.1, search_expanded=16.8, explain=3.4, total=27.4),
        )


def application(service: Service) -> FastAPI:
    """The page's routes, as the service has them."""
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        path = request.url.path
        if path.startswith("/v1/"):
            service.asked.append((path, json.loads(await request.body() or b"{}")))
            if service.key and request.headers.get("Authorization") != f"Bearer {service.key}":
                return JSONResponse(schemas.error(401, "authentication_error", "a key is needed"), 401)
            if path in service.failures:
                status, message, headers = service.failures[path]
                return JSONResponse(schemas.error(status, "server_error", message), status, headers)
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        return response

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/v1/models")
    def models() -> schemas.Models:
        known = {
            "id": "tiny", "created": 0, "owned_by": "aqe", "engine": "transformers", "prompt": "passage",
            "max_tokens": 24, "max_model_len": 512, "aligned": True, "search": True,
        }  # fmt: skip
        return schemas.Models(data=[schemas.Model.model_validate(known | service.model)])

    @app.get("/v1/examples")
    def examples() -> schemas.Examples:
        return schemas.Examples(examples=service.examples)

    @app.post("/v1/expand")
    def expand(body: schemas.ExpandOne) -> StreamingResponse:
        assert body.stream
        return StreamingResponse(service.stream(body.query), media_type="text/event-stream")

    @app.post("/v1/search")
    def search(body: schemas.SearchOne) -> schemas.Searched:
        return service.searched(body.model_dump())

    app.mount("/page", StaticFiles(directory=PAGE))
    return app


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    with http_server(application(service)) as url:
        service.url = f"{url}/"
        yield service
        if service.gate:
            service.gate.release(100)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """A page on which any error in the console (a breach of the content security policy is one), any uncaught
    exception and any request to another host fails the test. A refused request is no error of the page."""
    page = browser.new_page()
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    wrong: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(service.url) else wrong.append(request.url))
    yield page
    page.close()
    assert not wrong


def ask(page: Page, query: str) -> None:
    page.get_by_label("Your query").fill(query)
    page.keyboard.press("Enter")


def lists(page: Page) -> tuple[Locator, Locator]:
    return page.get_by_role("region", name="BM25 with the query alone"), page.get_by_role(
        "region", name="BM25 with the expansion"
    )


def test_a_query_is_expanded_as_one_watches_then_searched(page: Page, service: Service) -> None:
    service.gate = threading.Semaphore(0)
    page.goto(service.url)
    ask(page, QUERY + " here")
    expect(page.locator("#asked")).to_have_text(QUERY + " here")
    for i in range(1, len(TOKENS) + 1):
        service.gate.release()
        expect(page.locator("#added")).to_have_text("".join(TOKENS[:i]).strip())
        expect(page.get_by_role("status")).to_have_text("Expanding the query …" if i < len(TOKENS) else re.compile("."))
    plain, expanded = lists(page)
    expect(plain.get_by_role("heading", level=3)).to_have_text(["nucleus", "strand", "gcide:None"])
    expect(plain.locator(".move")).to_have_text(["▼ down to 2", "▼ down to 1,340, out of the top ten", "= same rank"])
    expect(expanded.get_by_role("heading", level=3)).to_have_text(["chromosome", "nucleus", "gcide:None"])
    expect(expanded.locator(".move")).to_have_text(
        ["▲ up from 812, new in the top ten", "▼ down from 1", "= same rank"]
    )
    chips = expanded.locator(".hit").first.locator(".chip")
    expect(chips.nth(0)).to_have_text("+chromosome from the expansion, 12.2")
    expect(chips.nth(2)).to_have_text("nucleus from the query, 6.9")
    expect(chips.nth(6)).to_be_hidden()
    expanded.get_by_role("button", name="more of chromosome").click()
    expect(chips.nth(6)).to_be_visible()
    expect(page.get_by_role("status")).to_have_text(f"The model added: {EXPANSION}. Passages found: 3 and 3.")
    expect(page.locator("#times dt")).to_have_text(
        [
            "first token",
            "expansion",
            "search with the query",
            "search with the expansion",
            "explanation",
            "in all, as seen here",
        ]
    )
    expect(page.locator("#times dd").nth(1)).to_have_text("643 ms")
    expect(page.locator("#made")).to_have_text("6 tokens")
    assert service.bodies("/v1/search") == [{"query": QUERY + " here", "gold": [], "k": 10}]


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ((None, 1), "rank not found → 1 (found with the expansion)"),
        ((3, None), "rank 3 → not found (lost with the expansion)"),
        ((None, None), "rank not found → not found (unchanged)"),
    ],
)
def test_what_is_not_found_has_no_rank(
    page: Page, service: Service, ranks: tuple[int | None, int | None], said: str
) -> None:
    service.gold_ranks = ranks
    service.plain_hits, service.expanded_hits = [hit(1, None, "rope", None)], [hit(1, None, "chromosome", None)]
    page.goto(service.url)
    page.get_by_role("button", name=QUERY).click()
    expect(page.locator(".golds li")).to_have_text([f"★ gold passage chromosome: {said}"])
    plain, expanded = lists(page)
    expect(plain.locator(".move")).to_have_text(["▼ not found with the expansion"])
    expect(expanded.locator(".move")).to_have_text(["▲ not found by the query alone"])


def test_gold_of_an_example_is_marked_and_forgotten_when_it_is_edited(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.get_by_role("button", name=QUERY).click()
    expect(page.get_by_label("Your query")).to_have_value(QUERY)
    expect(page.locator(".golds li")).to_have_text(["★ gold passage chromosome: rank 812 → 1 (811 places up)"])
    expect(page.locator(".is-gold")).to_have_count(1)
    expect(page.locator(".is-gold")).to_contain_text("★ gold")
    ask(page, QUERY + "?")
    expect(page.locator("#asked")).to_have_text(QUERY + "?")
    expect(page.locator(".lists")).to_be_visible()
    expect(page.locator(".golds")).to_have_count(0)
    assert [body["gold"] for body in service.bodies("/v1/search")] == [["gcide:chromosome"], []]


def test_address_keeps_the_query(page: Page, service: Service) -> None:
    page.goto(service.url)
    ask(page, "c++ & more")
    expect(page.locator("#asked")).to_have_text("c++ & more")
    ask(page, "second")
    expect(page.locator("#asked")).to_have_text("second")
    page.go_back()
    expect(page.locator("#asked")).to_have_text("c++ & more")
    expect(page.get_by_label("Your query")).to_have_value("c++ & more")
    page.reload()
    expect(page.locator("#asked")).to_have_text("c++ & more")
    expect(page.locator(".lists")).to_be_visible()
    page.go_back()
    expect(page.locator("#expansion")).to_be_hidden()
    expect(page.get_by_label("Your query")).to_have_value("")


def test_keyboard_alone(page: Page, service: Service) -> None:
    page.goto(service.url)
    query = page.get_by_label("Your query")
    expect(query).to_be_focused()
    expect(page.locator("#examples")).to_be_visible()
    for _ in range(3):  # button, summary, first example
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name=QUERY)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".is-gold")).to_have_count(1)
    expect(page.get_by_text("Known examples")).to_be_focused()
    for _ in range(3):  # what was sent, the long passage, the long chips
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="more of chromosome")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="less of chromosome")).to_be_focused()
    service.gate = threading.Semaphore(1)
    page.keyboard.press("/")
    expect(query).to_be_focused()
    page.keyboard.type("either/or")  # replaces what was selected; the slash is typed
    expect(query).to_have_value("either/or")
    page.keyboard.press("Enter")
    expect(page.locator("#added")).to_have_text("chromosome")
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(query).to_have_value("either/or")


def test_a_new_query_takes_the_place_of_the_one_in_work(page: Page, service: Service) -> None:
    gate = service.gate = threading.Semaphore(1)
    page.goto(service.url)
    ask(page, "first")
    expect(page.locator("#added")).to_have_text("chromosome")
    service.gate = None  # "first" waits at the gate, "second" does not
    ask(page, "second")
    expect(page.locator(".lists")).to_be_visible()
    gate.release(100)
    page.wait_for_load_state("networkidle")
    expect(page.locator("#asked")).to_have_text("second")
    expect(page.locator("#added")).to_have_text(EXPANSION)
    assert [body["query"] for body in service.bodies("/v1/search")] == ["second"]


def test_a_key_is_asked_for_and_kept_for_the_tab(page: Page, service: Service) -> None:
    service.key = "right"
    page.goto(f"{service.url}?q=cell")
    secret = page.get_by_label("API key")
    expect(secret).to_be_focused()
    secret.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This key was not accepted")).to_be_visible()
    secret.fill("right")
    page.keyboard.press("Enter")
    expect(page.locator(".lists")).to_be_visible()
    expect(secret).to_be_hidden()
    page.reload()
    expect(page.locator(".lists")).to_be_visible()
    expect(secret).to_be_hidden()
    assert page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("path", ["/v1/models", "/v1/expand", "/v1/search"])
def test_a_refusal_says_when_to_come_back(page: Page, service: Service, path: str) -> None:
    service.failures[path] = (503, "too many requests are waiting", {"Retry-After": "120"})
    page.goto(f"{service.url}?q=cell")
    trouble = page.get_by_role("alert")
    expect(trouble).to_contain_text("too many requests are waiting Try again in 1")
    expect(page.locator("#running")).to_be_hidden()
    service.failures.clear()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".lists")).to_be_visible()
    expect(trouble).to_be_empty()


@pytest.mark.parametrize(("breaks", "said"), [("error", "the engine died"), ("off", "The connection broke off")])
def test_a_stream_that_breaks(page: Page, service: Service, breaks: str, said: str) -> None:
    service.breaks = breaks
    page.goto(f"{service.url}?q=cell")
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.locator("#added")).to_have_text(EXPANSION)
    expect(page.locator(".writing")).to_have_count(0)
    assert not service.bodies("/v1/search")


def test_no_service_at_all(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.route("**/v1/expand", lambda route: route.abort())
    ask(page, "cell")
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached")


@pytest.mark.parametrize(("reason", "said"), [("stop", "The model added nothing."), ("skip", "Not expanded: a rule")])
def test_nothing_is_added(page: Page, service: Service, reason: str, said: str) -> None:
    service.expansion, service.tokens, service.finish_reason = "", [], reason
    service.expanded_hits = service.plain_hits
    page.goto(f"{service.url}?q=cell")
    expect(page.locator("#made")).to_contain_text(said)
    expect(page.get_by_text("both searches are the same")).to_be_visible()
    expect(page.get_by_role("region", name="BM25 with the query alone").get_by_role("heading", level=3)).to_have_count(
        3
    )
    expect(page.get_by_role("region", name="BM25 with the expansion")).to_have_count(0)


def test_nothing_is_found(page: Page, service: Service) -> None:
    service.plain_hits, service.expanded_hits = [], []
    page.goto(f"{service.url}?q=cell")
    expect(page.get_by_text("No passage holds any of these words.")).to_have_count(2)


def test_base_model_without_an_index(page: Page, service: Service) -> None:
    service.model, service.examples = {"aligned": False, "search": False}, []
    page.goto(f"{service.url}?q=cell")
    expect(page.locator("#times dt")).to_have_text(["first token", "expansion", "in all, as seen here"])
    expect(page.get_by_text("nobody has taught it to expand")).to_be_visible()
    expect(page.get_by_text("No index is mounted")).to_be_visible()
    expect(page.get_by_text("Known examples")).to_be_hidden()
    expect(page.locator("#results")).to_be_empty()
    assert not service.bodies("/v1/search")


def test_markup_in_data_is_text(page: Page, service: Service) -> None:
    hit = SearchHit(rank=1, docid=EVIL, score=1, title=EVIL, text=EVIL, rank_other=1, gold=True, terms=[
        TermScore(term=EVIL, words=[EVIL], source="both", score=1),
    ])  # fmt: skip
    service.expansion, service.tokens, service.model = EVIL, [EVIL], {"id": EVIL, "engine": EVIL}
    service.plain_hits = service.expanded_hits = [hit]
    service.examples = [schemas.Example(query=EVIL, gold=[EVIL])]
    page.goto(service.url)
    page.get_by_role("button", name="<img").click()
    plain, expanded = lists(page)
    for shown in (page.locator("#asked"), page.locator("#added"), *(x.locator("h3") for x in (plain, expanded))):
        expect(shown).to_have_text(EVIL)
    expect(expanded.locator(".text")).to_have_text(EVIL)
    expect(expanded.locator(".chip")).to_contain_text(EVIL)
    expect(page.locator("#served")).to_contain_text(EVIL)
    service.failures["/v1/expand"] = (422, EVIL, {})
    ask(page, EVIL + EVIL)
    expect(page.get_by_role("alert")).to_contain_text(EVIL)
    assert page.locator("img, body script").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("width", [320, 700, 1280])
def test_nothing_is_wider_than_the_window(page: Page, service: Service, width: int) -> None:
    service.expansion = "x" * 300
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{service.url}?q={QUERY}")
    plain, expanded = lists(page)
    left, right = plain.bounding_box(), expanded.bounding_box()
    assert left and right
    assert (left["y"] == right["y"]) is (width > 800)  # side by side, or stacked
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_headings_and_landmarks(page: Page, service: Service) -> None:
    page.goto(f"{service.url}?q={QUERY}")
    expect(page.locator(".lists")).to_be_visible()
    levels = [
        int(name[1]) for name in page.locator(":is(h1, h2, h3):visible").evaluate_all("all => all.map(x => x.tagName)")
    ]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for landmark in (
        page.get_by_role("banner"),
        page.get_by_role("search"),
        page.get_by_role("main"),
        page.get_by_role("contentinfo"),
    ):
        expect(landmark).to_have_count(1)
    expect(page.get_by_role("link", name="API documentation")).to_have_attribute("href", "docs")
