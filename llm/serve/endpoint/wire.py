"""How requests are read: strict JSON, and the header by which a client says how long it will wait."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Header, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.strict_json import loads

LONG_BODY_BYTES = 65_536
JSON_TYPE = re.compile(r"application/json\s*(;|$)", re.IGNORECASE)

TimeoutSeconds = Annotated[
    float | None, Header(alias="X-Timeout-Seconds", gt=0, le=86_400, description="how long the client waits for the answer")
]


class StrictRequest(Request):
    """A request whose body is JSON that means one thing."""

    async def json(self) -> Any:
        """The body's value.

        Raises: ApiError if it is no strict JSON.
        """
        body = await self.body()
        try:
            return await run_in_threadpool(loads, body) if len(body) > LONG_BODY_BYTES else loads(body)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_json") from None


class StrictRoute(APIRoute):
    """A route that reads its body as `StrictRequest` does, and JSON only: any other type a page elsewhere can send unasked."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, given a strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if request.method == "POST" and not JSON_TYPE.match(request.headers.get("content-type", "")):
                raise ApiError(415, "send the body as Content-Type: application/json")
            return await handler(StrictRequest(request.scope, request.receive))

        return strict
