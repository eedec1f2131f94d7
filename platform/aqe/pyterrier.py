"""Query expansion in PyTerrier: `ExpandQuery("http://127.0.0.1:8000") >> retriever`.

Needs the package pyterrier, and neither Java nor Terrier: what it adds works before any retriever.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from aqe.errors import AqeError, ConfigError, DependencyError, InputError
from aqe.expand.expander import Expander

try:
    import pandas as pd
    import pyterrier as pt
    import requests
    from requests.adapters import HTTPAdapter
    from requests.auth import AuthBase
    from urllib3.util import Retry
except ModuleNotFoundError as missing:
    raise DependencyError(f'aqe.pyterrier needs PyTerrier ({missing}): pip install "pyterrier>=1.1"') from None

#: Where the API key is looked for when none is given.
API_KEY = "AQE_API_KEY"


class ExpandQuery(pt.Transformer):
    """Rewrites each query to the query with its expansion.

    `url_or_model` is the address of a service, or a model: what `Expander.load` takes, or an Expander that is loaded
    already (for other settings than the model's own). A model is loaded when the first query comes.

    Reads `qid` and `query`, of queries or of results. Gives back the same rows: `query` is what to search with,
    `query_0` the query as it was (its predecessor moves to `query_1`; `pt.rewrite.reset()` undoes all that), and
    `expansion` what the model added. Equal queries are expanded once.

    Retrievers that take plain text need nothing more. Terrier's reads a query language: it removes punctuation by
    itself, except where the text has something of that language in it, such as `#1` or `^2`, and a language model may
    well write those. So put its tokeniser between:

        ExpandQuery(url) >> pt.rewrite.tokenise() >> pt.terrier.TerrierIndex("index").bm25()

    The rest is for a service: `api_key` (default: the variable AQE_API_KEY), `batch_size` queries in one request (the
    service takes 256 at most), `timeout` in seconds until it answers, and `retries` when it says that it is busy; how
    long to wait before them, it says itself.

    Raises InputError for an empty query and what the service or the model cannot expand, ConfigError for a wrong
    address or key, DependencyError when the service does not answer.
    """

    def __init__(
        self,
        url_or_model: str | Path | Expander,
        *,
        api_key: str | None = None,
        batch_size: int = 64,
        timeout: float = 60,
        retries: int = 5,
    ) -> None:
        self._source = url_or_model
        self._service: _Service | None = None
        if isinstance(url_or_model, str) and url_or_model.startswith(("http://", "https://")):
            key = api_key or os.environ.get(API_KEY)
            self._service = _Service(url_or_model, key, batch_size, timeout, retries)
        elif api_key:
            raise ConfigError(f"an api_key is for a service, and {url_or_model} is no address: it must begin with http")

    def __repr__(self) -> str:
        source = self._source if isinstance(self._source, str | Path) else self._source.path
        return f"ExpandQuery({str(source)!r})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The same rows, to be searched with their expansions."""
        pt.validate.columns(inp, includes=["qid", "query"], context=self)
        for qid, query in zip(inp["qid"], inp["query"], strict=True):
            if not isinstance(query, str) or not query.strip():
                raise InputError(f"the query of qid {qid} is empty ({query!r}): there is nothing to expand. Drop it.")
        distinct = list(dict.fromkeys(inp["query"]))
        expanded = dict(zip(distinct, self._expand(distinct) if distinct else [], strict=True))
        out = pt.model.push_queries(inp)
        for column, part in (("query", 1), ("expansion", 0)):
            values = [expanded[query][part] for query in inp["query"]]
            out[column] = pd.Series(values, index=out.index, dtype=str)
        return out

    def _expand(self, queries: list[str]) -> list[tuple[str, str]]:
        """Expansion and composed query of each."""
        if self._service:
            return self._service.expand(queries)
        if isinstance(self._source, str | Path):
            self._source = Expander.load(self._source)
        return [(each.text, each.composed) for each in self._source.expand_many(queries)]


class _Bearer(AuthBase):
    """The API key as a header. Not set on the session, where a ~/.netrc would replace it."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _Service:
    """Asks a service, in batches, over connections that are kept open.

    By requests, because urllib3's Retry beneath it knows statuses and Retry-After (httpx's transport repeats only what
    did not connect), and because a session can be pickled, for pipelines that run in several processes.
    """

    def __init__(self, url: str, api_key: str | None, batch_size: int, timeout: float, retries: int) -> None:
        self._url = f"{url.rstrip('/')}/v1/expand"
        self._batch_size = batch_size
        self._timeout = timeout
        self._session = requests.Session()
        self._session.auth = _Bearer(api_key) if api_key else None
        retry = Retry(
            retries,
            connect=2,  # A wrong address must not look like a slow service.
            read=1,  # A kept connection that the server has closed meanwhile.
            allowed_methods=["POST"],  # Expanding twice harms nothing.
            status_forcelist=[429, 502, 503],
            backoff_factor=0.5,
            raise_on_status=False,  # The last answer says why.
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def expand(self, queries: list[str]) -> list[tuple[str, str]]:
        """Expansion and composed query of each."""
        starts = range(0, len(queries), self._batch_size)
        return [pair for start in starts for pair in self._ask(queries[start : start + self._batch_size])]

    def _ask(self, queries: Sequence[str]) -> list[tuple[str, str]]:
        try:
            answer = self._session.post(self._url, json={"queries": queries}, timeout=self._timeout)
        except requests.RequestException as error:
            raise DependencyError(
                f"no answer from {self._url}: {error}. Is the service running, and the address right? "
                "If it is only slow, give a smaller batch_size or a longer timeout."
            ) from None
        if not answer.ok:
            raise _refusal(answer, queries)
        try:
            results = answer.json()["results"]
            odd = next((result for result in results if "error" in result), None)
            pairs = [] if odd else [(result["expansion"], result["composed"]) for result in results]
        except (ValueError, KeyError, TypeError):
            odd, pairs = None, []
        if odd:
            said = odd["error"]["message"].rstrip(".")
            raise InputError(f"{self._url} cannot expand the query {odd['query'][:60]!r}: {said}.")
        if len(pairs) != len(queries):
            raise ConfigError(f"{self._url} does not answer as aqe's service does. Is it the right address?")
        return pairs


def _refusal(answer: requests.Response, queries: Sequence[str]) -> AqeError:
    """The service's own words, and what to do."""
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.reason
    said = f"{answer.url} says {answer.status_code}: {message.rstrip('.')}."
    match answer.status_code:
        case 401 | 403:
            return ConfigError(f"{said} Give a valid api_key, or set {API_KEY}.")
        case 404 | 405:
            return ConfigError(f"{said} Give the address of aqe's service without a path: http://127.0.0.1:8000")
        case 413 | 504:
            return InputError(f"{said} Give a smaller batch_size; it was {len(queries)}.")
        case code if code == 429 or code >= 500:
            return DependencyError(f"{said} It was asked several times; try again later.")
    return InputError(f"{said} It was asked for the queries from {queries[0][:60]!r} to {queries[-1][:60]!r}.")
