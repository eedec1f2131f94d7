"""The example client and PyTerrier's transformer on the service itself: what they give is what Python gives."""

from pathlib import Path

import pandas as pd
import pytest

from aqe.expand.expander import Expander
from serve.client import Client
from serve.guard import Guard
from serve.keys import Keys
from serve.routes import make_api
from tests.tools.serve import KEY, aligned, listening, service


def test_client_and_transformer(tmp_path: Path) -> None:
    pyterrier = pytest.importorskip("aqe.pyterrier", reason="pyterrier is not installed: make setup")
    model = aligned(tmp_path)
    made, expander = service(model), Expander.load(model)
    with listening(Guard(make_api(made), Keys([KEY]), made.config.limits)) as url:
        client = Client(url, KEY)
        expected = expander.expand("who wrote carmen?")
        *pieces, answer = client.stream("who wrote carmen?")
        assert isinstance(answer, dict) and answer["composed"] == expected.composed
        assert " ".join("".join(map(str, pieces)).split()) == expected.text
        assert client.expand("who wrote carmen?")["cached"]
        queries = pd.DataFrame({"qid": ["1", "2"], "query": ["gold ring", "opera"]})
        served = pyterrier.ExpandQuery(url, api_key=KEY)(queries)
        pd.testing.assert_frame_equal(served, pyterrier.ExpandQuery(expander)(queries))
        assert list(served["query_0"]) == list(queries["query"])
