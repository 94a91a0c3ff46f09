"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.answers import ASKING, Text, Tokens, errors
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.generate import chat_ids, check_ids, check_length
from llm.serve.endpoint.requests import MAX_MESSAGES, ChatMessage, RequestModel, TokenId
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.visit import Visit, visit_of
from llm.serve.endpoint.wire import StrictRoute

MAX_TOKENS = 2**17


class TokenizeRequest(RequestModel):
    """A text, or a conversation, whose tokens are asked for."""

    model: str = Field(max_length=200)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool = Field(default=True, description="whether a text begins as a document does")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "send prompt or messages", param="prompt")
        return self


class DetokenizeRequest(RequestModel):
    """Tokens whose text is asked for."""

    model: str = Field(max_length=200)
    tokens: list[TokenId] = Field(max_length=MAX_TOKENS)


def tokens(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/tokenize", response_model=Tokens, responses=errors(*ASKING))
    async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
        """The ids of a text as a completion reads it, or of messages as a chat does."""
        return await run_in_threadpool(_tokenize, service, visit_of(request), body)

    @router.post("/detokenize", response_model=Text, responses=errors(*ASKING))
    async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, str]:
        """The text of ids."""
        return await run_in_threadpool(_detokenize, service, visit_of(request), body)

    return router


def _tokenize(service: Service, visit: Visit, body: TokenizeRequest) -> dict[str, Any]:
    engine = service.lease(body.model, visit).engine
    if body.messages:
        ids = chat_ids(engine, [message.plain() for message in body.messages])
    else:
        text = body.prompt or ""
        check_length(engine, text, param="prompt")
        ids = [engine.tokenizer.bos] * body.add_special_tokens + list(engine.tokenizer.encode(text))
    names = [engine.token_name(id) for id in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": engine.facts.context_tokens, "tokens": ids, "token_strs": names}


def _detokenize(service: Service, visit: Visit, body: DetokenizeRequest) -> dict[str, str]:
    engine = service.lease(body.model, visit).engine
    check_ids(engine, body.tokens, param="tokens")
    return {"prompt": engine.text(body.tokens)}
