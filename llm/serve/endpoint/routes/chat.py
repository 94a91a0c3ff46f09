"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.answers import ChatCompletion, streamed
from llm.serve.endpoint.generate import Batch, Written, chat_ids, check_end, gathered, interleaved, start
from llm.serve.endpoint.reply import Reply, chat_logprobs, usage_of
from llm.serve.endpoint.requests import ChatRequest
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.stream import EventStream
from llm.serve.endpoint.visit import Visit, visit_of
from llm.serve.endpoint.wire import StrictRoute, TimeoutSeconds
from llm.serve.retrieval.chat import with_passages


def chat(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/chat/completions", response_model=None, responses=streamed(ChatCompletion))
    async def converse(body: ChatRequest, request: Request, timeout: TimeoutSeconds = None) -> Response:
        """Answer a conversation."""
        batch = await run_in_threadpool(_start, service, visit_of(request), body, timeout)
        if body.stream:
            return EventStream(_events(batch, body))
        whole = partial(_whole, batch, body, await gathered(batch.generations))
        return await run_in_threadpool(whole) if body.logprobs else whole()  # it may be long

    return router


def _start(service: Service, visit: Visit, body: ChatRequest, timeout_seconds: float | None) -> Batch:
    served = service.lease(body.model, visit)
    messages = [message.plain() for message in body.messages]
    visit.record.kind, visit.record.messages = "chat", tuple(messages)
    messages, citations = with_passages(service.retriever, served.engine, body, messages)
    prompt = chat_ids(served.engine, messages)
    batch = start(service, served, visit, body, [prompt], max_tokens=body.wanted_tokens, timeout_seconds=timeout_seconds)
    return replace(batch, citations=citations)


def _whole(batch: Batch, body: ChatRequest, written: list[Written]) -> Response:
    reply, choices = Reply.to(batch, chat=True), []
    for index, text in enumerate(written):
        logprobs = chat_logprobs(batch.engine, text.tokens) if body.logprobs else None
        choices.append(reply.choice(index, text.text, text.finish_reason, logprobs))
    return JSONResponse(reply.whole(choices, usage_of(batch)) | _cited(batch))


def _cited(batch: Batch) -> dict[str, Any]:
    return {} if batch.citations is None else {"citations": batch.citations}


async def _events(batch: Batch, body: ChatRequest) -> AsyncIterator[str]:
    reply = Reply.to(batch, chat=True)
    for index in range(len(batch.generations)):
        yield reply.part([reply.opening(index)], more=_cited(batch) if index == 0 else {})
    async for index, chunk in interleaved(batch.generations):
        check_end(chunk.finish_reason)
        if chunk.text or chunk.finish_reason or body.logprobs:
            logprobs = chat_logprobs(batch.engine, list(chunk.tokens)) if body.logprobs else None
            yield reply.part([reply.delta(index, chunk.text, chunk.finish_reason, logprobs)])
    if body.include_usage:
        yield reply.part([], usage_of(batch))
