"""The HTTP server: OpenAI's completions and chats, answered by one exported model on this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from llm.data import template
from llm.errors import CapacityError, DataError
from llm.serve.endpoint.limits import Limits
from llm.serve.endpoint.protocol import ApiError, ChatRequest, CompletionRequest, GenerationRequest, error_body
from llm.serve.endpoint.reply import Reply, logprobs_of, usage
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Chunk
from llm.serve.engine.sampling import Sampling
from llm.serve.page.routes import page

HOST = "127.0.0.1"
DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Job:
    """One choice to generate."""

    prompt: list[int]
    sampling: Sampling


def serve(folder: Path, *, port: int = 8000, model_id: str = "trainyard", max_concurrent: int = 4, threads: int = 0) -> None:
    """Serve the export artifact or `onnx` folder at `folder` until interrupted, on 127.0.0.1 only.

    Raises: ArtifactError if the folder can't be served; CapacityError if the port is taken.
    """
    _check_port(port)
    app = create_app(Engine(folder, model_id=model_id, config=EngineConfig(threads=threads)), max_concurrent=max_concurrent)
    uvicorn.run(app, host=HOST, port=port, log_level="info", timeout_graceful_shutdown=5)


def _check_port(port: int) -> None:
    """Learn that the port is taken before a large model is loaded, and in our own words."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            value = f"{HOST}:{port} ({error.strerror})"
            raise CapacityError("the port can't be opened", value=value, remedy="choose another with --port") from error


def create_app(engine: Engine, *, max_concurrent: int = 4, max_body_bytes: int = 1_000_000) -> FastAPI:
    """The application; requests beyond `max_concurrent` are told to come back."""
    app = FastAPI(title="Trainyard", docs_url=None, redoc_url=None)
    app.add_middleware(Limits, max_concurrent=max_concurrent, max_body_bytes=max_body_bytes)
    _add_error_handlers(app)
    _add_model_routes(app, engine)
    app.include_router(page())

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        _require_model(engine, body.model)
        prompts = [_prompt_ids(engine, prompt) for prompt in body.prompt]
        jobs = _jobs(engine, body, prompts, max_tokens=DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens)
        if body.stream:
            return _stream(engine, jobs, body, chat=False)
        return JSONResponse(await _complete(engine, jobs, body, request))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        _require_model(engine, body.model)
        jobs = _jobs(engine, body, [_chat_ids(engine, body)], max_tokens=body.max_completion_tokens or body.max_tokens)
        if body.stream:
            return _stream(engine, jobs, body, chat=True)
        return JSONResponse(await _chat(engine, jobs, request))

    return app


def _add_model_routes(app: FastAPI, engine: Engine) -> None:
    entry = {"id": engine.model_id, "object": "model", "created": int(time.time()), "owned_by": "trainyard"}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": engine.model_id}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> dict[str, Any]:
        _require_model(engine, model_id)
        return entry


def _add_error_handlers(app: FastAPI) -> None:
    """Every failure leaves as OpenAI's error object, and none repeats what the client sent."""

    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error_body(error.status, error.message, param=error.param, code=error.code), error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        message = f"{param}: {first['msg']}" if param else str(first["msg"])
        return JSONResponse(error_body(400, message, param=param), 400)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, f"the server failed ({type(error).__name__}); its log says more"), 500)


def _require_model(engine: Engine, model_id: str) -> None:
    if model_id != engine.model_id:
        message = f"the model {model_id!r} is not served here; {engine.model_id!r} is"
        raise ApiError(404, message, param="model", code="model_not_found")


def _prompt_ids(engine: Engine, prompt: str | list[int]) -> list[int]:
    """Text begins like a document; ids are taken as they are."""
    if isinstance(prompt, str):
        return [engine.tokenizer.bos, *engine.tokenizer.encode(prompt)]
    if not prompt or not all(0 <= id < engine.facts.vocab_size for id in prompt):
        raise ApiError(400, f"token ids have to be from 0 to {engine.facts.vocab_size - 1}, and at least one", param="prompt")
    return prompt


def _chat_ids(engine: Engine, body: ChatRequest) -> list[int]:
    """Turns are opened and closed by ids, never by text, so that nobody can write one."""
    try:
        return template.prompt_ids(engine.tokenizer, template.turns([message.plain() for message in body.messages]))
    except DataError as error:
        raise ApiError(400, str(error), param="messages") from error


def _jobs(engine: Engine, body: GenerationRequest, prompts: list[list[int]], *, max_tokens: int | None) -> list[Job]:
    """`n` choices per prompt, each checked against the context; without a limit, a choice may fill the context."""
    longest, context = max(map(len, prompts)), engine.facts.context_tokens
    wanted = max(context - longest, 1) if max_tokens is None else max_tokens
    if longest + wanted > context:
        message = f"the context is {context} tokens; the prompt has {longest} and the answer may take {wanted}"
        raise ApiError(400, message, param="max_tokens" if longest < context else None, code="context_length_exceeded")
    return [Job(prompt, body.sampling(max_tokens=wanted, choice=choice)) for prompt in prompts for choice in range(body.n)]


async def _generate(engine: Engine, job: Job, request: Request, *, top: int = 0) -> tuple[list[Chunk], str]:
    """All chunks of one choice and their text, unless the client leaves first."""
    chunks = []
    async for chunk in engine.submit(job.prompt, job.sampling, top=top):
        chunks.append(chunk)
        if await request.is_disconnected():
            raise ApiError(499, "the client left")
    return chunks, "".join(chunk.text for chunk in chunks)


async def _chat(engine: Engine, jobs: list[Job], request: Request) -> dict[str, Any]:
    reply, choices, written = Reply(engine.model_id, chat=True), [], 0
    for index, job in enumerate(jobs):
        chunks, text = await _generate(engine, job, request)
        choices.append(reply.choice(index, text, chunks[-1].finish_reason))
        written += _count(chunks)
    return reply.whole(choices, usage(len(jobs[0].prompt), written))


async def _complete(engine: Engine, jobs: list[Job], body: CompletionRequest, request: Request) -> dict[str, Any]:
    reply, choices, written, top = Reply(engine.model_id, chat=False), [], 0, body.logprobs or 0
    for index, job in enumerate(jobs):
        chunks, text = await _generate(engine, job, request, top=top)
        scored = [token for chunk in chunks for token in chunk.tokens]
        if body.echo:
            text = engine.text(job.prompt) + text
            scored = await run_in_threadpool(engine.score, job.prompt, top=top) + scored
        logprobs = None if body.logprobs is None else logprobs_of(engine, scored)
        choices.append(reply.choice(index, text, chunks[-1].finish_reason, logprobs))
        written += _count(chunks)
    return reply.whole(choices, usage(_read(jobs, body), written))


def _stream(engine: Engine, jobs: list[Job], body: GenerationRequest, *, chat: bool) -> StreamingResponse:
    return StreamingResponse(_events(engine, jobs, body, chat=chat), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _events(engine: Engine, jobs: list[Job], body: GenerationRequest, *, chat: bool) -> AsyncIterator[str]:
    """Server-sent events, one choice after another."""
    reply, written = Reply(engine.model_id, chat=chat), 0
    for index, job in enumerate(jobs):
        if chat:
            yield reply.part([reply.delta(index, "", None, opens=True)])
        async for chunk in engine.submit(job.prompt, job.sampling):
            written += len(chunk.tokens)
            if chunk.text or chunk.finish_reason:
                yield reply.part([reply.delta(index, chunk.text, chunk.finish_reason)])
    if body.include_usage:
        yield reply.part([], usage(_read(jobs, body), written))
    yield "data: [DONE]\n\n"


def _read(jobs: list[Job], body: GenerationRequest) -> int:
    """Prompt tokens, each prompt counted once whatever `n` is."""
    return sum(len(job.prompt) for job in jobs[:: body.n])


def _count(chunks: list[Chunk]) -> int:
    return sum(len(chunk.tokens) for chunk in chunks)
