"""The application: OpenAI's interface and KServe's, answered by exported models on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.config import Settings
from llm.serve.endpoint.errors import add_error_handlers
from llm.serve.endpoint.gate import Gate
from llm.serve.endpoint.keys import Keyring
from llm.serve.endpoint.routes.chat import chat
from llm.serve.endpoint.routes.completions import completions
from llm.serve.endpoint.routes.embeddings import embeddings
from llm.serve.endpoint.routes.health import health
from llm.serve.endpoint.routes.kserve import kserve
from llm.serve.endpoint.routes.models import models
from llm.serve.endpoint.routes.tokens import tokens
from llm.serve.endpoint.service import Service
from llm.serve.models.catalogue import Catalogue
from llm.serve.observe import routes as observe_routes
from llm.serve.observe.observer import Observer
from llm.serve.observe.requests import Observed
from llm.serve.page import routes as page_routes

PROBED = ("/health", "/ready")  # what orchestrators ask, without a key


def create_app(catalogue: Catalogue, settings: Settings | None = None, observer: Observer | None = None) -> FastAPI:
    """The application that serves a catalogue; `app.state.service` is what its routes share.

    Raises: ArtifactError if the keys can't be read.
    """
    settings = settings or Settings()
    service = Service.of(catalogue, settings, observer)
    app = FastAPI(title="Trainyard", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_lifespan)
    app.state.service = service
    for routes in (completions, chat, embeddings, tokens, models, health, kserve):
        app.include_router(routes(service))
    app.include_router(observe_routes.routes(service.observer))
    if settings.page:
        app.include_router(page_routes.page())
    open_paths = frozenset([*PROBED, *(page_routes.PATHS if settings.page else ())])
    keyring = Keyring(settings.keys) if settings.keys else None
    app.add_middleware(Gate, settings=settings, keyring=keyring, traffic=service.traffic, open_paths=open_paths)
    app.add_middleware(Observed, observer=service.observer, routes=app.routes)
    add_error_handlers(app)
    _correct(app.openapi(), keys=settings.keys is not None)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await run_in_threadpool(app.state.service.close)


def _correct(document: dict[str, Any], *, keys: bool) -> None:
    """Take from FastAPI's OpenAPI document the answers that this server doesn't give, and add that it wants keys."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if keys and path not in PROBED:
                operation["security"] = [{"key": []}]
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
