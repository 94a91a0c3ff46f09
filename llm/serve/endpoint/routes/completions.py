"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.answers import Completion, streamed
from llm.serve.endpoint.generate import Batch, Written, check_end, gathered, interleaved, prompt_ids, start
from llm.serve.endpoint.reply import Reply, completion_logprobs, usage_of
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
        batch = await run_in_threadpool(_start, service, visit_of(request), body, timeout)
        read = await _read(batch, body)
        if body.stream:
            return EventStream(_events(batch, body, read))
        return JSONResponse(await _whole(batch, body, read))

    return router


def _start(service: Service, visit: Visit, body: CompletionRequest, timeout_seconds: float | None) -> Batch:
    served = service.lease(body.model, visit)
    prompts = [prompt_ids(served.engine, prompt) for prompt in body.prompt]
    visit.record.kind = "completion"
    if service.observer.samples:
        visit.record.messages = ({"role": "user", "content": _text(served.engine, body.prompt[0])},)
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return start(service, served, visit, body, prompts, max_tokens=max_tokens, timeout_seconds=timeout_seconds)


def _text(engine: Engine, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else engine.text(prompt)


async def _read(batch: Batch, body: CompletionRequest) -> list[Written]:
    """Each prompt as an echo shows it; empty without one."""
    if not body.echo:
        return [Written("", [], "") for _ in batch.prompts]
    scored: list[list[Scored]] = [[] for _ in batch.prompts]
    if body.logprobs is not None:
        scored = [await run_in_threadpool(batch.engine.score, prompt, top=body.logprobs) for prompt in batch.prompts]
    return [Written(batch.engine.text(prompt), tokens, "") for prompt, tokens in zip(batch.prompts, scored, strict=True)]


async def _whole(batch: Batch, body: CompletionRequest, read: list[Written]) -> dict[str, Any]:
    reply, choices, candidates = Reply.to(batch, chat=False), list[dict[str, Any]](), body.candidates
    written = await gathered(batch.generations)
    for place, echo in enumerate(read):
        best = written[place * candidates : (place + 1) * candidates]
        if candidates > body.n:
            best = sorted(best, key=lambda text: -text.mean_logprob)[: body.n]
        for text in best:
            logprobs = None if body.logprobs is None else completion_logprobs(batch.engine, echo.tokens + text.tokens)
            choices.append(reply.choice(len(choices), echo.text + text.text, text.finish_reason, logprobs))
    return reply.whole(choices, usage_of(batch))


async def _events(batch: Batch, body: CompletionRequest, read: list[Written]) -> AsyncIterator[str]:
    reply, engine = Reply.to(batch, chat=False), batch.engine
    offsets = [0] * len(batch.generations)

    def part(index: int, text: str, tokens: list[Scored], finish_reason: str | None) -> str:
        logprobs = None if body.logprobs is None else completion_logprobs(engine, tokens, offset=offsets[index])
        offsets[index] += sum(len(engine.text([token.id])) for token in tokens)
        return reply.part([reply.delta(index, text, finish_reason, logprobs)])

    if body.echo:
        for index in range(len(batch.generations)):
            echo = read[index // body.candidates]
            yield part(index, echo.text, echo.tokens, None)
    async for index, chunk in interleaved(batch.generations):
        check_end(chunk.finish_reason)
        if chunk.text or chunk.finish_reason or body.logprobs is not None:
            yield part(index, chunk.text, list(chunk.tokens), chunk.finish_reason)
    if body.include_usage:
        yield reply.part([], usage_of(batch))
