"""The service's routes answer as the Expander does in Python, and say what is wrong with a request."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient

from aqe.expand.expander import Expander
from serve.engine import Piece
from tests.tools.serve import KEY, aligned, client, service

QUERY = "who wrote carmen?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return aligned(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def http(model: Path) -> Iterator[TestClient]:
    with client(service(model, skip={"max_words": 20, "pattern": '^".*"$'})) as made:
        yield made


def test_one_query_is_expanded_as_in_python(http: TestClient, model: Path) -> None:
    expected = Expander.load(model).expand(QUERY)
    answer = http.post("/v1/expand", json={"query": QUERY}).json()
    assert (answer["query"], answer["expansion"], answer["composed"]) == (QUERY, expected.text, expected.composed)
    assert (answer["num_tokens"], answer["finish_reason"]) == (expected.num_tokens, expected.finish_reason)
    assert answer["model"] == "serve0" or answer["model"].startswith("serve")
    assert not answer["alternatives"] and answer["milliseconds"] > 0


def test_many_queries_keep_their_order(http: TestClient, model: Path) -> None:
    queries = [f"query number {i}" for i in range(7)]
    expected = [made.text for made in Expander.load(model).expand_many(queries)]
    answer = http.post("/v1/expand", json={"queries": queries}).json()
    assert [result["query"] for result in answer["results"]] == queries
    assert [result["expansion"] for result in answer["results"]] == expected


def test_further_expansions_are_drawn_and_the_first_is_greedy(http: TestClient, model: Path) -> None:
    asked = {"query": QUERY, "num_expansions": 4, "max_tokens": 12}
    answer = http.post("/v1/expand", json=asked).json()
    assert answer["expansion"] == Expander.load(model, max_tokens=12).expand(QUERY).text
    others = [other["expansion"] for other in answer["alternatives"]]
    assert len(others) == 3 and len({answer["expansion"], *others}) > 1
    assert all(other["num_tokens"] <= 12 for other in answer["alternatives"])


def test_the_second_answer_comes_from_the_cache(model: Path) -> None:
    with client(service(model)) as http:
        first, second = (http.post("/v1/expand", json={"query": QUERY}).json() for _ in range(2))
        assert (first["cached"], second["cached"]) == (False, True)
        assert first["composed"] == second["composed"]
        # Another limit is another answer.
        assert not http.post("/v1/expand", json={"query": QUERY, "max_tokens": 3}).json()["cached"]
    with client(service(model, cache={"size": 0})) as http:
        assert not any(http.post("/v1/expand", json={"query": QUERY}).json()["cached"] for _ in range(2))


@pytest.mark.parametrize("asked", [{"query": QUERY, "skip": True}, {"query": '"exact words"'}, {"query": "word " * 21}])
def test_skipped_queries_are_searched_as_they_are(http: TestClient, asked: dict[str, object]) -> None:
    answer = http.post("/v1/expand", json=asked).json()
    assert (answer["composed"], answer["expansion"]) == (asked["query"], "")
    assert (answer["finish_reason"], answer["num_tokens"]) == ("skip", 0)


def test_a_stream_ends_with_the_whole_answer(model: Path) -> None:
    with client(service(model)) as http:
        for cached in (False, True):
            answer = http.post("/v1/expand", json={"query": QUERY, "stream": True})
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = [event.split("\n") for event in answer.text.strip().split("\n\n")]
            names = [name.removeprefix("event: ") for name, _ in events]
            data = [json.loads(line.removeprefix("data: ")) for _, line in events]
            assert names == ["token"] * (len(names) - 1) + ["done"]
            assert data[-1]["expansion"] == Expander.load(model).expand(QUERY).text
            assert data[-1]["cached"] is cached


@pytest.mark.parametrize(
    ("body", "code", "part"),
    [
        ({"query": ""}, 422, "query"),
        ({"query": " \n "}, 422, "query"),
        ({"query": 3}, 422, "query"),
        ({"query": "x" * 4001}, 422, "4000"),
        ({"query": "é" * 300}, 422, "tokens"),
        ({"query": "x", "max_tokens": 300}, 422, "max_tokens"),
        ({"query": "x", "max_token": 3}, 422, "max_token"),
        ({"query": "x", "num_expansions": 0}, 422, "num_expansions"),
        ({"queries": []}, 422, "queries"),
        ({"queries": ["x"] * 257}, 422, "256"),
        ({"query": "x", "queries": ["y"]}, 422, ""),
        ({}, 422, ""),
        ([], 422, ""),
        ("a query", 422, ""),
    ],
)
def test_wrong_requests_get_a_message(http: TestClient, body: object, code: int, part: str) -> None:
    answer = http.post("/v1/expand", json=body)
    assert answer.status_code == code
    wrong = answer.json()["error"]
    assert part in wrong["message"] and wrong["code"] == code and wrong["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", 400),
        (b"", 422),
        (b"\xff\xfe{}", 400),
        (b'{"query": "\xc3\x28"}', 400),
        (b'{"query": "\\ud800"}', 422),
        (b'{"query": NaN}', 422),
        (b"[" * 100_000, 400),
    ],
)
def test_bodies_that_are_no_json_text(http: TestClient, body: bytes, code: int) -> None:
    answer = http.post("/v1/expand", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == code and answer.json()["error"]["message"]
    assert http.get("/readyz").status_code == 200


def test_unknown_routes_and_methods(http: TestClient) -> None:
    assert http.get("/v2/expand").json()["error"]["type"] == "not_found"
    assert http.get("/v1/expand").status_code == 405
    assert http.post("/v1/search", json={"query": "x"}).status_code == 404


def test_models_and_health(http: TestClient) -> None:
    (served,) = http.get("/v1/models").json()["data"]
    assert served["engine"] == "transformers" and served["prompt"] == "passage" and served["aligned"]
    assert (served["max_tokens"], served["search"]) == (8, False)
    assert http.get("/healthz").json() == http.get("/readyz").json() == {"status": "ok"}


def test_a_stuck_engine_is_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = service(model, limits={"stuck_after_s": 0.2, "request_timeout_s": 3})

    async def hangs(*args: object) -> AsyncGenerator[Piece]:
        await asyncio.sleep(60)
        yield Piece("", ())

    monkeypatch.setattr(made.engine, "stream", hangs)
    with client(made) as http:
        asked: list[int] = []
        thread = threading.Thread(
            target=lambda: asked.append(http.post("/v1/expand", json={"query": QUERY}).status_code)
        )
        thread.start()
        deadline = time.monotonic() + 10
        while (ready := http.get("/readyz")).status_code == 200 and time.monotonic() < deadline:
            pass
        thread.join()
        assert ready.status_code == 503 and "made no token" in ready.json()["error"]["message"]
        assert asked == [504]
        # Its work was given up with the request.
        assert http.get("/readyz").status_code == http.get("/healthz").status_code == 200


def test_the_page_and_the_api_documents_come_from_here_alone(http: TestClient) -> None:
    for path in ("/", "/docs"):
        answer = http.get(path)
        assert answer.status_code == 200 and "http" not in answer.text.replace("http-equiv", "").replace(
            "http://www.w3.org", ""
        )
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/swagger/swagger-ui-bundle.js", "/page/swagger/swagger-ui.css", "/page/docs.js"):
        assert http.get(path).status_code == 200
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/expand", "/v1/search", "/v1/models", "/v1/completions", "/v1/chat/completions"} <= set(paths)


@pytest.fixture(scope="module")
def sdk(model: Path) -> Iterator[openai.OpenAI]:
    with client(service(model), keys=(KEY,)) as made:
        yield openai.OpenAI(base_url="http://testserver/v1", api_key=KEY, http_client=made, max_retries=0)


def test_openai_client_gets_the_expansion_by_the_expanders_prompt(sdk: openai.OpenAI, model: Path) -> None:
    expander = Expander.load(model)
    prompt = expander.recipe.prompt(QUERY)
    served = sdk.models.list().data[0].id
    made = sdk.completions.create(model=served, prompt=prompt, max_tokens=8, temperature=0, stop="\n")
    expected = expander.expand(QUERY)
    assert " ".join(made.choices[0].text.split()) == expected.text
    assert made.choices[0].finish_reason == expected.finish_reason
    assert made.usage and made.usage.completion_tokens == expected.num_tokens
    assert made.usage.prompt_tokens == len(prompt)  # The tiny model has a token for each character.


def test_openai_client_streams(sdk: openai.OpenAI) -> None:
    served = sdk.models.list().data[0].id
    asked = {"model": served, "prompt": ["one", "two"], "max_tokens": 6, "temperature": 0.0, "n": 2}
    whole = sdk.completions.create(**asked)  # type: ignore[call-overload]
    texts = [""] * 4
    usage = None
    for chunk in sdk.completions.create(**asked, stream=True, stream_options={"include_usage": True}):  # type: ignore[call-overload]
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] == texts[1] != texts[2]
    assert usage == whole.usage


def test_openai_client_sees_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is served"):
        sdk.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.UnprocessableEntityError, match="chat template"):
        sdk.chat.completions.create(model=sdk.models.list().data[0].id, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.UnprocessableEntityError, match="logit_bias"):
        sdk.completions.create(model="", prompt="x", logit_bias={"5": 1})
    with pytest.raises(openai.UnprocessableEntityError, match="tokens"):
        sdk.completions.create(model="", prompt="x" * 300, stream=True)
    with pytest.raises(openai.UnprocessableEntityError, match="empty"):
        sdk.completions.create(model="", prompt=["x", "\r"], stream=True)
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="another-key-than-that").models.list()


def test_openai_chat(tmp_path: Path) -> None:
    path = aligned(tmp_path)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    (path / "chat_template.jinja").write_text(template)
    with client(service(path)) as http:
        sdk = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
        asked = {"model": "", "messages": messages, "temperature": 0, "max_completion_tokens": 7}
        whole = sdk.chat.completions.create(**asked)  # type: ignore[call-overload]
        prompt = "system: Be brief.\nuser: Who?\nassistant:"
        same = sdk.completions.create(model="", prompt=prompt, temperature=0, max_tokens=7)
        assert whole.choices[0].message.content == same.choices[0].text
        chunks = list(sdk.chat.completions.create(**asked, stream=True))  # type: ignore[call-overload]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == same.choices[0].text
        assert chunks[-1].choices[0].finish_reason == same.choices[0].finish_reason
