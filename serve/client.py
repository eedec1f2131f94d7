"""An example of a client: one query, many, or the tokens as they are written.

usage: python -m serve.client QUERY [--url http://127.0.0.1:8000] [--search]

The API key is read from AQE_API_KEY. A busy service (429, 503) is asked again after the time that it names.
For a program of your own, generate a typed client from the OpenAPI document rather than copy this:

    pipx run openapi-python-client generate --url http://127.0.0.1:8000/openapi.json
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry


class _Bearer(AuthBase):
    """The API key as a header. Not set on the session, where a ~/.netrc would replace it."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Client:
    """The service's routes, as methods. Raises requests.RequestException with the service's own words."""

    def __init__(self, url: str = "http://127.0.0.1:8000", api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        if api_key:
            self._session.auth = _Bearer(api_key)
        retry = Retry(
            5, allowed_methods=["POST"], status_forcelist=[429, 503], backoff_factor=0.5, raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def expand(self, query: str, **options: Any) -> dict[str, Any]:
        """Search with ["composed"]. Options are those of POST /v1/expand."""
        return dict(self._post("expand", query=query, **options).json())

    def expand_many(self, queries: list[str], **options: Any) -> list[dict[str, Any]]:
        """At most 256, in their order. Where one cannot be expanded there is ["error"]["message"]."""
        return list(self._post("expand", queries=queries, **options).json()["results"])

    def stream(self, query: str, **options: Any) -> Iterator[str | dict[str, Any]]:
        """New text as it is written, then the answer that `expand` gives."""
        event = ""
        with self._post("expand", query=query, stream=True, **options) as answer:
            for line in answer.raw:  # Server-sent events: `event: NAME`, `data: JSON`, an empty line.
                field, _, value = line.decode().strip().partition(": ")
                if field == "event":
                    event = value
                elif field == "data" and event == "token":
                    yield json.loads(value)["text"]
                elif field == "data" and event == "done":
                    yield json.loads(value)
                    return
                elif field == "data":
                    raise requests.RequestException(json.loads(value)["error"]["message"])
        raise requests.ConnectionError("the stream ended before the expansion did")

    def search(self, query: str, k: int = 10, **options: Any) -> dict[str, Any]:
        """The best `k` passages for the query as it is, and for the expanded one."""
        return dict(self._post("search", query=query, k=k, **options).json())

    def _post(self, route: str, **body: Any) -> requests.Response:
        streams = body.get("stream", False)
        answer = self._session.post(f"{self._url}/v1/{route}", json=body, stream=streams, timeout=60)
        if not answer.ok:
            try:
                message = answer.json()["error"]["message"]
            except (ValueError, KeyError, TypeError):  # Not the service: a proxy before it, or another server.
                message = answer.reason
            raise requests.HTTPError(f"{answer.status_code}: {message}", response=answer)
        return answer


def main() -> int:
    """Print an expansion as it is written, or two lists of passages."""
    parser = argparse.ArgumentParser(prog="python -m serve.client", description="Expand a query.")
    parser.add_argument("query")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--search", action="store_true", help="search, too: needs an index behind the service")
    args = parser.parse_args()
    client = Client(args.url, os.environ.get("AQE_API_KEY"))
    try:
        if args.search:
            searched = client.search(args.query)
            print(searched["expanded"]["composed"])
            for title, hits in (("plain", searched["plain_hits"]), ("expanded", searched["expanded_hits"])):
                print(f"\n{title}:")
                for hit in hits:
                    print(f"{hit['rank']:4} {hit['score']:8.3f}  {hit['docid']}  {hit['title'] or ''}".rstrip())
        else:
            for piece in client.stream(args.query):
                print(f"\n\n{piece['composed']}" if isinstance(piece, dict) else piece, end="", flush=True)
            print()
    except requests.RequestException as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
