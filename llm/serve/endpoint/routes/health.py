"""GET /health: the process answers. GET /ready: it can serve."""

from __future__ import annotations

from fastapi import APIRouter

from llm.serve.endpoint.answers import READING, Alive, Ready, errors
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.service import Service


def health(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/health", response_model=Alive, responses=errors(403))
    async def alive() -> dict[str, str]:
        """The process answers; needs no key."""
        return {"status": "ok"}

    @router.get("/ready", response_model=Ready, responses=errors(*READING, 503))
    async def ready() -> dict[str, str]:
        """Every model is loaded, and requests are taken."""
        if not service.ready:
            raise ApiError(503, "not ready", code="not_ready")
        return {"status": "ready"}

    return router
