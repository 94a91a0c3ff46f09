"""What a request may cost: size of its body, and how many generate at once.

A plain ASGI layer, so that a place is taken before the body is read and given back when the last byte of a
stream is out, whatever happens in between.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.serve.endpoint.protocol import error_body

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
RETRY_AFTER_SECONDS = 1


class Limits:
    """Refuses what is too large, too many, or sent through another name than this machine's own."""

    def __init__(self, app: ASGIApp, *, max_concurrent: int, max_body_bytes: int) -> None:
        self.app, self.max_concurrent, self.max_body_bytes = app, max_concurrent, max_body_bytes
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif refusal := self._refusal(dict(scope["headers"])):
            await refusal(scope, receive, send)
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self.running >= self.max_concurrent:
            await _refuse(429, f"{self.running} requests are running, which is the limit; try again")(scope, receive, send)
        else:
            await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        try:
            await self.app(scope, self._counted(receive), send)
        finally:
            self.running -= 1

    def _refusal(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """A page elsewhere can point its own name at 127.0.0.1 and talk to local servers through a browser.

        Source: DNS rebinding, CVE-2024-28224.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        if not any(host == name or host.startswith(f"{name}:") for name in LOOPBACK_HOSTS):
            return _refuse(403, "only requests to 127.0.0.1 or localhost are served")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            return _refuse(413, f"the body is larger than {self.max_body_bytes} bytes")
        return None

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that stops a body which declared no length, or a false one."""
        read_bytes = 0

        async def counted() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > self.max_body_bytes:
                raise HTTPException(413, f"the body is larger than {self.max_body_bytes} bytes")
            return message

        return counted


def _refuse(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 429 else None
    return JSONResponse(error_body(status, message), status, headers=headers)
