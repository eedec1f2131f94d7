"""The service against its own OpenAPI document: no answer that the document does not know, and never a 500."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from serve.guard import Guard
from serve.keys import Keys
from serve.routes import make_api
from tests.tools.serve import aligned, listening, service

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: make setup")


#: How a wrong request may be refused: schemathesis' own list, and 413 for a text that makes the body too long as well.
REFUSED = ["400", "401", "403", "404", "406", "413", "415", "422", "428", "429", "5xx"]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = service(aligned(tmp_path_factory.mktemp("fuzz")))
    with listening(Guard(make_api(made), Keys(()), made.config.limits)) as url:
        config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSED}}})
        yield schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)


OPERATIONS = (
    ("/v1/expand", "POST"),
    ("/v1/search", "POST"),
    ("/v1/examples", "GET"),
    ("/v1/completions", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/models", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
)


def fuzz(operation: Any, mode: Any, excluded: list[Any]) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(timeout=60, excluded_checks=excluded)

    check()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_right_requests(document: Any, path: str, method: str) -> None:
    # The document cannot know the model's own limits: its length, whether it has a chat template.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")] if method == "POST" else []
    fuzz(document[path][method], schemathesis.GenerationMode.POSITIVE, excluded)


@pytest.mark.parametrize(("path", "method"), [operation for operation in OPERATIONS if operation[1] == "POST"])
def test_wrong_requests(document: Any, path: str, method: str) -> None:
    fuzz(document[path][method], schemathesis.GenerationMode.NEGATIVE, [])


def test_no_operation_is_left_out(document: Any) -> None:
    found = {(made.ok().path, made.ok().method.upper()) for made in document.get_all_operations()}
    assert found == set(OPERATIONS)
