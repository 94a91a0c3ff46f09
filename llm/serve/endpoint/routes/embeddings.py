"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from llm.errors import ArtifactError
from llm.serve.endpoint.answers import ASKING, Embeddings, errors
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.generate import read_prompts
from llm.serve.endpoint.reading import read_each
from llm.serve.endpoint.requests import Prompts, RequestModel, ignored
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.visit import Visit, visit_of
from llm.serve.endpoint.wire import StrictRoute, TimeoutSeconds
from llm.serve.engine.engine import Engine

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
    async def embed(body: EmbeddingRequest, request: Request, timeout: TimeoutSeconds = None) -> Response:
        """A unit vector for each input."""
        visit = visit_of(request)
        engine, rows = await run_in_threadpool(_start, service, visit, body)
        vectors = await read_each(service, visit, rows, partial(_vector, visit, engine, body.dimensions), timeout_seconds=timeout)
        return await run_in_threadpool(_whole, body, vectors, visit.record.prompt_tokens)

    return router


def _start(service: Service, visit: Visit, body: EmbeddingRequest) -> tuple[Engine, list[list[int]]]:
    if len(body.input) > MAX_INPUTS:
        raise ApiError(400, f"one request may have {MAX_INPUTS} inputs", param="input")
    engine = service.lease(body.model, visit).engine
    rows = read_prompts(engine, visit, body.input, param="input")
    if (longest := max(map(len, rows))) > engine.facts.context_tokens:
        message = f"the context is {engine.facts.context_tokens} tokens; an input has {longest}"
        raise ApiError(400, message, param="input", code="context_length_exceeded")
    return engine, rows


def _vector(visit: Visit, engine: Engine, dimensions: int | None, row: list[int]) -> np.ndarray:
    visit.record.prompt_tokens += len(row)  # now, so that who leaves pays for it
    try:
        vector: np.ndarray = engine.embed([row])[0]
    except ArtifactError as error:
        raise ApiError(400, error.fact, param="model", code="embeddings_not_supported") from error
    if dimensions not in (None, len(vector)):
        raise ApiError(400, f"vectors of this model have {len(vector)} dimensions, and can't be cut", param="dimensions")
    if not np.isfinite(vector).all():
        raise ApiError(500, "the model gave no finite vector")
    return vector


def _whole(body: EmbeddingRequest, vectors: list[np.ndarray], read_tokens: int) -> Response:
    data = [{"object": "embedding", "index": index, "embedding": _written(vector, body)} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": read_tokens, "total_tokens": read_tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _written(vector: np.ndarray, body: EmbeddingRequest) -> list[float] | str:
    if body.encoding_format == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
