"""Failures as clients read them: OpenAI's error object, which never repeats what was sent."""

from __future__ import annotations

import difflib
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from llm.errors import CapacityError, DataError, RecipeError

RETRY_AFTER_SECONDS = 1
LONGEST_MESSAGE = 400

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The answer to every request that failed, whatever its route."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An error that the client gets to read; `param` names the part of the request that it is about."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message, headers=retry_headers(status))
        self.param, self.code = param, code


def retry_headers(status: int, seconds: int = RETRY_AFTER_SECONDS) -> dict[str, str] | None:
    """`Retry-After` where coming back helps."""
    return {"Retry-After": str(seconds)} if status in (429, 503) else None


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error object that OpenAI's clients turn into exceptions."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message[:LONGEST_MESSAGE], "type": kind, "param": param, "code": code}}


def asked_for(error: DataError | RecipeError) -> str:
    """What to say to whoever asked for what can't be done."""
    return f"{error.fact}; {error.remedy}"


def unknown(name: str, valid: list[str]) -> str:
    """What to say about a name that nobody knows."""
    near = difflib.get_close_matches(name, valid, n=1)
    return f"unknown parameter; did you mean {near[0]}?" if near else "unknown parameter"


def add_error_handlers(app: FastAPI) -> None:
    """Every failure inside the application leaves as an error object."""

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        param, code = (error.param, error.code) if isinstance(error, ApiError) else (None, None)
        return JSONResponse(
            error_body(error.status_code, str(error.detail), param=param, code=code), error.status_code, headers=error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part)[:64] for part in first["loc"] if part not in ("body", "header", "path", "query")) or None
        message = f"{param}: {first['msg']}" if param else str(first["msg"])
        return JSONResponse(error_body(400, message, param=param), 400)

    @app.exception_handler(RecipeError)
    async def refused(_: Request, error: RecipeError) -> JSONResponse:
        return JSONResponse(error_body(400, asked_for(error)), 400)

    @app.exception_handler(CapacityError)
    async def full(_: Request, error: CapacityError) -> JSONResponse:
        return JSONResponse(error_body(429, f"{error.fact}; try again later", code="queue_full"), 429, headers=retry_headers(429))
