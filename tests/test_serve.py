"""The expander behind HTTP answers as the Expander does in Python."""

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from aqe.expand.expander import Expander
from aqe.expand.settings import ExpanderSettings
from aqe.sample.prompts import resolve
from serve.app import Settings, build
from tests import tiny_model


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_expand_over_http(ray_cluster: None, tmp_path: Path) -> None:
    from ray import serve

    model = tiny_model.save(tmp_path / "model")
    ExpanderSettings(prompt=resolve("passage"), query_weight=2, max_tokens=8).write(model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build(Settings(model=str(model))))
        url = f"http://127.0.0.1:{port}/v1/expand"
        expected = Expander.load(model).expand("who wrote carmen?")
        status, answer = post(url, {"query": "who wrote carmen?"})
        assert status == 200
        assert (answer["expansion"], answer["composed"]) == (expected.text, expected.composed)
        assert answer["num_tokens"] == expected.num_tokens
        assert post(url, {"query": ""})[0] == 422
        assert post(url, {"query": "   "})[0] == 422
        assert post(url, {"text": "x"})[0] == 422
    finally:
        serve.shutdown()
