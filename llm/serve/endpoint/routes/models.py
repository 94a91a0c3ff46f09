"""GET /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from llm.serve.endpoint.answers import READING, Model, ModelList, errors
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.service import Service


def models(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    to_one = {"Model": {"operationId": "model", "parameters": {"model_id": "$response.body#/data/0/id"}}}

    @router.get("/v1/models", response_model=ModelList, responses={200: {"links": to_one}, **errors(*READING)})
    async def listed() -> dict[str, Any]:
        """The served models."""
        return {"object": "list", "data": _entries(service)}

    @router.get("/v1/models/{model_id:path}", operation_id="model", response_model=Model, responses=errors(*READING, 404))
    async def model(model_id: str) -> dict[str, Any]:
        """One served model."""
        for entry in _entries(service):
            if entry["id"] == model_id:
                return entry
        raise ApiError(404, "this model is not served here", param="model", code="model_not_found")

    return router


def _entries(service: Service) -> list[dict[str, Any]]:
    return [
        {"id": id, "object": "model", "created": created, "owned_by": "trainyard", "max_model_len": facts.context_tokens}
        for id, created, facts in service.catalogue.entries()
    ]
