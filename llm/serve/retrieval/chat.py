"""Passages in a chat: what its request asks for, as far as the context has room beside the answer."""

from __future__ import annotations

from typing import Any

from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.generate import chat_ids
from llm.serve.endpoint.requests import ChatRequest
from llm.serve.engine.engine import Engine
from llm.serve.retrieval.context import Message, cited, question
from llm.serve.retrieval.retriever import Retriever


def with_passages(
    retriever: Retriever | None, engine: Engine, body: ChatRequest, messages: list[Message]
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The chat with passages, and their citations; None where none were asked for.

    Raises: ApiError if they are and the server has no documents.
    """
    if retriever is None:
        if body.retrieval and body.retrieval.top != 0:
            raise ApiError(400, "this server has no documents to quote from", param="retrieval", code="no_documents")
        return messages, None
    top = _top(retriever, body)
    if top == 0:
        return messages, None
    context_tokens = engine.facts.context_tokens
    wanted_tokens = int(context_tokens * retriever.config.answer_share) if body.wanted_tokens is None else body.wanted_tokens

    def fits(messages: list[Message]) -> bool:
        try:
            return len(chat_ids(engine, messages)) + wanted_tokens <= context_tokens
        except ApiError:  # far too long; or the chat itself is wrong, which it is without passages too
            return False

    return cited(messages, retriever.search(question(messages), top), fits)


def _top(retriever: Retriever, body: ChatRequest) -> int:
    """How many passages are wanted."""
    if body.retrieval:
        return retriever.config.top if body.retrieval.top is None else body.retrieval.top
    return retriever.config.top if retriever.config.always else 0
