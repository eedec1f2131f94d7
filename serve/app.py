"""The aligned expander as a Ray Serve application: `serve run serve.app:build model=PATH`."""

from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from ray import serve

from aqe.errors import AqeError
from aqe.expand.expander import Expander

api = FastAPI(title="aqe", description="One expansion of a search query, from a model aligned with BM25's ranks.")


class Settings(BaseModel):
    """Arguments of the application."""

    model: str = "package:smollm2-135m-instruct"
    """An aligned model's directory, a hub id, or `package:NAME`."""


class ExpandRequest(BaseModel):
    """A query to expand."""

    query: str = Field(min_length=1, max_length=4_000)


class ExpandResponse(BaseModel):
    """Its expansion, and the composed query to search."""

    query: str
    expansion: str
    composed: str
    finish_reason: str
    num_tokens: int
    milliseconds: float


@serve.deployment(ray_actor_options={"num_cpus": 1})
@serve.ingress(api)
class ExpanderService:
    """Loads the model once and answers one query after another."""

    def __init__(self, settings: Settings) -> None:
        self._expander = Expander.load(settings.model)

    @api.post("/v1/expand")
    def expand(self, request: ExpandRequest) -> ExpandResponse:
        """One greedy expansion."""
        try:
            made = self._expander.expand(request.query)
        except AqeError as error:
            raise HTTPException(422, str(error)) from None
        return ExpandResponse(
            query=made.query,
            expansion=made.text,
            composed=made.composed,
            finish_reason=made.finish_reason,
            num_tokens=made.num_tokens,
            milliseconds=made.milliseconds,
        )


def build(settings: Settings) -> Any:
    """The application, for `serve run` and `serve deploy`."""
    return ExpanderService.bind(settings)  # type: ignore[attr-defined]  # the decorator adds it
