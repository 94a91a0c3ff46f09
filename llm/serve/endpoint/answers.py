"""What the routes answer, as the OpenAPI document shows it. Answers are built as plain dictionaries (`reply.py`);
that they have this form is held by tests that read the document.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llm.serve.endpoint.errors import ErrorBody

FinishReason = Literal["stop", "length"]
STATUSES = {
    400: "The request can't be served as it is; `param` names the part",
    401: "No valid key",
    403: "This host name is not served",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    431: "The request line and headers are too large",
    429: "Too many requests; come back after `Retry-After` seconds",
    500: "The server failed",
    503: "The server is not ready, or about to end",
    504: "The answer took too long",
}
READING, ASKING = (400, 401, 403, 408, 429, 431, 500), (400, 401, 403, 404, 408, 413, 415, 429, 431, 500, 503, 504)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses in a route's documentation."""
    return {status: {"model": ErrorBody, "description": STATUSES[status]} for status in statuses}


def streamed(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A documented answer that is one object, or server-sent events with `stream`, and the errors of asking."""
    event = {"type": "object", "description": "one event; the last one's data is [DONE]", "required": ["data"]}
    events = {"text/event-stream": {"schema": event | {"properties": {"data": {"type": "string", "description": "a JSON object"}}}}}
    return {200: {"model": model, "description": "The answer, whole or as events", "content": events}, **errors(*ASKING)}


class Answer(BaseModel):
    """An answer or a part of one: nothing but what is documented."""

    model_config = ConfigDict(extra="forbid")


class PromptDetails(Answer):
    """Of the tokens read, those whose state was kept from earlier requests."""

    cached_tokens: int


class Usage(Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(Answer):
    """Log-probabilities of a completion, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One text."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None


class Frame(Answer):
    """What completions and chats share."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class Completion(Frame):
    """The answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TokenLogprob(Answer):
    """A token and how likely it was."""

    token: str
    logprob: float | None
    bytes: list[int] | None


class ScoredToken(TokenLogprob):
    """A token of the answer, and the likeliest at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answer):
    """Log-probabilities of a chat's answer."""

    content: list[ScoredToken]
    refusal: None


class Message(Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    """One answer of a chat."""

    index: int
    message: Message
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None


class Citation(Answer):
    """A passage that the model was given, under the number by which it may cite it; `start` counts characters."""

    number: int
    document: str
    start: int
    score: float
    text: str


class ChatCompletion(Frame):
    """The answer of /v1/chat/completions; `citations` where passages were asked for."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    citations: list[Citation] = []


class Model(Answer):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Answer):
    """All served models."""

    object: Literal["list"]
    data: list[Model]


class Embedding(Answer):
    """The vector of one input; a string is base64 of little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokens(Answer):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Answer):
    """The answer of /detokenize."""

    prompt: str


class Alive(Answer):
    """The process answers."""

    status: Literal["ok"]


class Ready(Answer):
    """Every model is loaded, and the server takes requests."""

    status: Literal["ready"]
