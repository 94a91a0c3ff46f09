"""/metrics, and /v1/feedback where samples are kept."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import Field

from llm.errors import CapacityError
from llm.serve.endpoint.answers import ASKING, READING, Answer, errors
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.requests import RequestModel
from llm.serve.endpoint.wire import StrictRoute
from llm.serve.observe.metrics import CONTENT_TYPE
from llm.serve.observe.observer import Observer
from llm.serve.observe.samples import Rating, Samples, UnknownAnswer

ANSWER_ID = r"^[A-Za-z0-9-]{1,100}$"


class Feedback(RequestModel):
    """What a user thinks of an answer."""

    id: str = Field(pattern=ANSWER_ID, description="id of the answer, as chat and completions give it")
    rating: Literal["up", "down"]
    comment: str = Field(default="", max_length=2_000)
    correction: str = Field(default="", max_length=20_000, description="what the answer should have been")


class Rated(Answer):
    """A rating that is kept."""

    id: str
    object: Literal["feedback"]
    rating: Literal["up", "down"]


class Forgotten(Answer):
    """Whether anything was kept of an answer."""

    id: str
    object: Literal["feedback"]
    deleted: bool


def routes(observer: Observer) -> APIRouter:
    """The routes that this observer's settings ask for. Whoever adds them guards them like all others."""
    router = APIRouter(route_class=StrictRoute)
    if observer.config.metrics_port is None:
        _add_metrics(router, observer)
    if observer.samples:
        _add_feedback(router, observer.samples)
    return router


def _add_metrics(router: APIRouter, observer: Observer) -> None:
    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **errors(*READING)})
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(observer.metrics.text(), media_type=CONTENT_TYPE)


def _add_feedback(router: APIRouter, samples: Samples) -> None:
    @router.post("/v1/feedback", response_model=Rated, responses=errors(*ASKING))
    async def rate(body: Feedback) -> dict[str, Any]:
        """Rate one of the latest answers; it is kept with its prompt."""
        try:
            await _done(samples.rated(Rating(**body.model_dump())))
        except UnknownAnswer as error:
            raise ApiError(404, str(error), param="id", code="answer_not_found") from error
        except CapacityError as error:
            raise ApiError(429, str(error), param="id") from error
        return {"id": body.id, "object": "feedback", "rating": body.rating}

    @router.delete("/v1/feedback/{id}", response_model=Forgotten, responses=errors(*READING, 503))
    async def forget(id: Annotated[str, Path(pattern=ANSWER_ID)]) -> dict[str, Any]:
        """Delete what is kept of an answer, and its ratings."""
        try:
            lines = await _done(samples.forgotten(id))
        except CapacityError as error:
            raise ApiError(429, str(error), param="id") from error
        return {"id": id, "object": "feedback", "deleted": lines > 0}


async def _done(future: Future[Any]) -> Any:
    """What the writer made of it, which it makes also if the client leaves."""
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except OSError as error:
        raise ApiError(503, "the disk of this server doesn't take feedback") from error
