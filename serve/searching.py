"""Expansion, then search: what POST /v1/search answers, for one query or several."""

from typing import Any

from aqe.errors import InputError
from serve.call import Call
from serve.schemas import Expanded, ExpandMany, ExpandOptions, Failed, Searched, SearchedMany, SearchMany, SearchOne
from serve.service import ExpandService
from serve.together import together

#: Searches of one request at once; the index serves other requests beside them.
SEARCHES = 4


class ExpandAndSearch:
    """A service, and a searcher with the methods of `serve.search.Searcher`, here or on another machine."""

    def __init__(self, service: ExpandService, searcher: Any) -> None:
        self._service = service
        self._searcher = searcher

    async def one(self, body: SearchOne, call: Call) -> Searched:
        """Both result lists of a query. Raises InputError when it cannot be expanded, or a gold passage is unknown."""
        return await self._searched(await self._service.expand(body.query, body, call), body.k, body.gold, call)

    async def many(self, body: SearchMany, call: Call) -> SearchedMany:
        """Those of several queries, in their order. One that cannot be answered gets an error, the others do not."""
        options = body.model_dump(include=set(ExpandOptions.model_fields))
        expanded = await self._service.expand_many(ExpandMany(queries=body.queries, **options), call)

        async def search(result: Expanded | Failed) -> Searched | Failed:
            if isinstance(result, Failed):
                return result
            try:
                return await self._searched(result, body.k, [], call)
            except InputError as error:
                return Failed.of(result.query, error)

        results = await together(search, expanded.results, SEARCHES)
        return SearchedMany(results=results, model=expanded.model, milliseconds=call.milliseconds)

    async def _searched(self, expanded: Expanded, k: int, gold: list[str], call: Call) -> Searched:
        lists = await self._searcher.search(expanded.query, expanded.expansion, expanded.composed, k, gold)
        lists["milliseconds"] |= {"expand": expanded.milliseconds, "total": call.milliseconds}
        return Searched.model_validate({"expanded": expanded, **lists})
