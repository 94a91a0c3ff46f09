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
from llm.serve.endpoint.generate import Submitted, Written, chat_ids, gathered, interleaved, start
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
        submitted = await run_in_threadpool(_start, service, visit_of(request), body, timeout)
        if body.stream:
            return EventStream(_events(submitted, body), submitted.visit)
        whole = partial(_whole, submitted, body, await gathered(submitted))
        return await run_in_threadpool(whole) if body.logprobs else whole()  # it may be long

    return router


def _start(service: Service, visit: Visit, body: ChatRequest, timeout_seconds: float | None) -> Submitted:
    served = service.lease(body.model, visit)
    messages = [message.plain() for message in body.messages]
    visit.record.kind, visit.record.messages = "chat", tuple(messages)
    messages, citations = with_passages(service.retriever, served.engine, body, messages)
    prompt = chat_ids(served.engine, messages)
    submitted = start(service, served, visit, body, [prompt], max_tokens=body.wanted_tokens, timeout_seconds=timeout_seconds)
    return replace(submitted, citations=citations)


def _whole(submitted: Submitted, body: ChatRequest, written: list[Written]) -> Response:
    reply, choices = Reply.to(submitted, chat=True), []
    for index, text in enumerate(written):
        logprobs = chat_logprobs(submitted.engine, text.tokens) if body.logprobs else None
        choices.append(reply.choice(index, text.text, text.finish_reason, logprobs))
    return JSONResponse(reply.whole(choices, usage_of(submitted)) | _cited(submitted))


def _cited(submitted: Submitted) -> dict[str, Any]:
    return {} if submitted.citations is None else {"citations": submitted.citations}


async def _events(submitted: Submitted, body: ChatRequest) -> AsyncIterator[str]:
    reply = Reply.to(submitted, chat=True)
    for index in range(len(submitted.generations)):
        yield reply.part([reply.opening(index)], more=_cited(submitted) if index == 0 else {})
    async for index, chunk in interleaved(submitted):
        if chunk.text or chunk.finish_reason or body.logprobs:
            logprobs = chat_logprobs(submitted.engine, list(chunk.tokens)) if body.logprobs else None
            yield reply.part([reply.delta(index, chunk.text, chunk.finish_reason, logprobs)])
    if body.include_usage:
        yield reply.part([], usage_of(submitted))
