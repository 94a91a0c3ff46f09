"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from llm.errors import ArtifactError
from llm.serve.endpoint.answers import ASKING, Embeddings, errors
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.generate import prompt_ids
from llm.serve.endpoint.requests import Prompts, RequestModel, ignored
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.visit import Visit, visit_of
from llm.serve.endpoint.wire import StrictRoute

MAX_INPUTS = 256


class EmbeddingRequest(RequestModel):
    """Texts or token ids whose vectors are asked for."""

    model: str = Field(max_length=200)
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(ge=1, lt=2**31, description="only the model's own width")] = None
    user: str | None = ignored()


def embeddings(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/embeddings", response_model=None, responses={200: {"model": Embeddings}, **errors(*ASKING)})
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        """A unit vector for each input."""
        return JSONResponse(await run_in_threadpool(_embed, service, visit_of(request), body))

    return router


def _embed(service: Service, visit: Visit, body: EmbeddingRequest) -> dict[str, Any]:
    if len(body.input) > MAX_INPUTS:
        raise ApiError(400, f"one request may have {MAX_INPUTS} inputs", param="input")
    engine = service.lease(body.model, visit).engine
    rows = [prompt_ids(engine, each, param="input") for each in body.input]
    if (longest := max(map(len, rows))) > engine.facts.context_tokens:
        message = f"the context is {engine.facts.context_tokens} tokens; an input has {longest}"
        raise ApiError(400, message, param="input", code="context_length_exceeded")
    try:
        vectors = engine.embed(rows)
    except ArtifactError as error:
        raise ApiError(400, error.fact, param="model", code="embeddings_not_supported") from error
    if body.dimensions not in (None, vectors.shape[1]):
        raise ApiError(400, f"vectors of this model have {vectors.shape[1]} dimensions, and can't be cut", param="dimensions")
    read = visit.record.prompt_tokens = sum(map(len, rows))
    data = [{"object": "embedding", "index": index, "embedding": _written(row, body)} for index, row in enumerate(vectors)]
    return {"object": "list", "data": data, "model": body.model, "usage": {"prompt_tokens": read, "total_tokens": read}}


def _written(vector: np.ndarray, body: EmbeddingRequest) -> list[float] | str:
    if body.encoding_format == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
