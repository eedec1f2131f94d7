"""Nothing in a request is without a bound: the OpenAPI document says so, and what is too much costs nothing."""

import json
from typing import Any

import pytest

from serve.routes import make_api
from tests.serve.test_batches import http
from tests.tools.engine import Steady, steady

DOCUMENT: dict[str, Any] = make_api(steady(Steady())).openapi()


def unbounded(schema: dict[str, Any], place: str, seen: tuple[str, ...] = ()) -> list[str]:
    """Places in a schema where a value may be of any size."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return [] if name in seen else unbounded(DOCUMENT["components"]["schemas"][name], place, (*seen, name))
    found = []
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        found += unbounded(option, place, seen)
    if "enum" in schema or "const" in schema:
        return found
    match schema.get("type"):
        case "string" if "maxLength" not in schema:
            found.append(place)
        case "integer" | "number":
            low, high = {"minimum", "exclusiveMinimum"} & set(schema), {"maximum", "exclusiveMaximum"} & set(schema)
            found += [] if low and high else [place]
        case "array":
            found += [] if "maxItems" in schema else [place]
            found += unbounded(schema["items"], f"{place}[]", seen)
        case "object":
            found += [] if schema.get("additionalProperties") is False else [place]
            for key, value in schema.get("properties", {}).items():
                found += unbounded(value, f"{place}.{key}", seen)
        case "string" | "boolean" | "null":
            pass
        case None if found or {"anyOf", "oneOf", "allOf"} & set(schema):
            pass
        case kind:
            found.append(f"{place}: {kind}")
    return found


BODIES = {
    path: operation["post"]["requestBody"]["content"]["application/json"]["schema"]
    for path, operation in DOCUMENT["paths"].items()
    if "post" in operation
}


@pytest.mark.parametrize("path", BODIES)
def test_no_field_of_a_request_is_without_a_bound(path: str) -> None:
    assert unbounded(BODIES[path], path) == []


def test_no_request_has_other_parameters() -> None:
    assert len(BODIES) == 4
    assert not [op for path in DOCUMENT["paths"].values() for op in path.values() if op.get("parameters")]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "boolean"}},
        {"type": "array", "maxItems": 3, "items": {"type": "string"}},
        {"type": "object", "properties": {}},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {},
    ],
)
def test_what_has_no_bound_is_found(schema: dict[str, Any]) -> None:
    assert unbounded(schema, "x")


def test_stop_texts_are_few_and_short() -> None:
    with http(Steady()) as client:

        def code(stop: Any) -> int:
            return client.post("/v1/completions", json={"prompt": "x", "stop": stop}).status_code

        assert [code(["ab"] * 16), code("x" * 100), code(None), code([])] == [200] * 4
        assert [code(["ab"] * 17), code("x" * 101), code(["x" * 101])] == [422] * 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "x", "stop": ["ab"] * 170_000}, "at most 16"),
        ({"prompt": "x", "stop": [f"{i:06}" for i in range(100_000)]}, "at most 16"),
        ({"prompt": "x"} | {f"key{i}": 1 for i in range(60_000)}, "more than 64 keys"),
        ({"prompt": "x", "x" * 1_000_000: 1}, "xxx"),
        ({"prompt": [3] * 300_000}, "at most 256"),
        ({"prompt": "x", "stream_options": {f"key{i}": 1 for i in range(60_000)}}, "more than 64 keys"),
    ],
    ids=["stops", "distinct stops", "keys", "a long key", "prompts", "keys below"],
)
def test_a_body_full_of_anything_is_refused_in_few_words(body: dict[str, Any], said: str) -> None:
    text = json.dumps(body)
    with http(Steady()) as client:
        refused = client.post("/v1/completions", content=text, headers={"content-type": "application/json"})
    assert len(text) < 1 << 20 and refused.status_code == 422
    # One error a key, or a key as long as the body, would take the event loop half a second to tell.
    assert len(refused.content) < 2000 and said in refused.json()["error"]["message"]
