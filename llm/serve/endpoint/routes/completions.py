"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.answers import Completion, streamed
from llm.serve.endpoint.generate import Submitted, Written, gathered, interleaved, start
from llm.serve.endpoint.reading import read_each
from llm.serve.endpoint.reply import Offsets, Reply, completion_logprobs, joined, usage_of
from llm.serve.endpoint.requests import CompletionRequest
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.stream import EventStream
from llm.serve.endpoint.visit import Visit, visit_of
from llm.serve.endpoint.wire import StrictRoute, TimeoutSeconds
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Scored

DEFAULT_TOKENS = 16


def completions(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/completions", response_model=None, responses=streamed(Completion))
    async def complete(body: CompletionRequest, request: Request, timeout: TimeoutSeconds = None) -> Response:
        """Continue each prompt, a text or token ids."""
        submitted = await run_in_threadpool(_start, service, visit_of(request), body, timeout)
        read = await _read(service, submitted, body, timeout)
        if body.stream:
            return EventStream(_events(submitted, body, read), submitted.visit)
        whole = partial(_whole, submitted, body, read, await gathered(submitted))
        return whole() if body.logprobs is None and not body.echo else await run_in_threadpool(whole)  # it may be long

    return router


def _start(service: Service, visit: Visit, body: CompletionRequest, timeout_seconds: float | None) -> Submitted:
    served = service.lease(body.model, visit)
    visit.record.kind = "completion"
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    submitted = start(service, served, visit, body, body.prompt, max_tokens=max_tokens, timeout_seconds=timeout_seconds)
    if service.observer.samples:
        visit.record.messages = ({"role": "user", "content": _text(served.engine, body.prompt[0])},)
    return submitted


def _text(engine: Engine, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else engine.text(prompt)


async def _read(service: Service, submitted: Submitted, body: CompletionRequest, timeout_seconds: float | None) -> list[Written]:
    """Each prompt as an echo shows it; empty without one."""
    if not body.echo:
        return [Written("", [], "") for _ in submitted.prompts]
    if body.logprobs is None:
        return [Written(text, [], "") for text in await run_in_threadpool(lambda: list(map(submitted.engine.text, submitted.prompts)))]

    def read(prompt: list[int]) -> Written:
        return Written(submitted.engine.text(prompt), submitted.engine.score(prompt, top=body.logprobs or 0), "")

    return await read_each(service, submitted.visit, submitted.prompts, read, timeout_seconds=timeout_seconds)


def _whole(submitted: Submitted, body: CompletionRequest, read: list[Written], written: list[Written]) -> Response:
    reply, choices, candidates = Reply.to(submitted, chat=False), list[dict[str, Any]](), body.candidates
    for place, echo in enumerate(read):
        best = written[place * candidates : (place + 1) * candidates]
        if candidates > body.n:
            best = sorted(best, key=lambda text: -text.mean_logprob)[: body.n]
        for text in best:
            logprobs = None if body.logprobs is None else _logprobs(submitted.engine, echo.tokens, text.tokens)
            choices.append(reply.choice(len(choices), echo.text + text.text, text.finish_reason, logprobs))
    return JSONResponse(reply.whole(choices, usage_of(submitted)))


def _logprobs(engine: Engine, read: list[Scored], written: list[Scored]) -> dict[str, Any]:
    offsets = Offsets(engine)
    echoed = completion_logprobs(engine, read, offsets)
    offsets.end()
    return joined(echoed, completion_logprobs(engine, written, offsets))


async def _events(submitted: Submitted, body: CompletionRequest, read: list[Written]) -> AsyncIterator[str]:
    reply, engine = Reply.to(submitted, chat=False), submitted.engine
    offsets = [Offsets(engine) for _ in submitted.generations]

    def part(index: int, text: str, tokens: list[Scored], finish_reason: str | None) -> str:
        logprobs = None if body.logprobs is None else completion_logprobs(engine, tokens, offsets[index])
        return reply.part([reply.delta(index, text, finish_reason, logprobs)])

    if body.echo:
        for index in range(len(submitted.generations)):
            echo = read[index // body.candidates]
            yield await run_in_threadpool(part, index, echo.text, echo.tokens, None)
            offsets[index].end()
    async for index, chunk in interleaved(submitted):
        if chunk.text or chunk.finish_reason or body.logprobs is not None:
            yield part(index, chunk.text, list(chunk.tokens), chunk.finish_reason)
    if body.include_usage:
        yield reply.part([], usage_of(submitted))
