"""The part of OpenAI's HTTP interface that is served: requests as models, answers as plain dictionaries.

Settings that would change the answer and aren't supported are refused; the rest of what clients send
(user, metadata, store …) is ignored.

Source: https://platform.openai.com/docs/api-reference; top_k and token-id prompts as vLLM takes them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from llm.serve.engine.sampling import Sampling

NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "modalities": (["text"],),
}


class ApiError(Exception):
    """An error that the client gets to read."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error object that OpenAI's clients turn into exceptions."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """Settings that completions and chats share."""

    model: str
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    n: int = Field(default=1, ge=1, le=4)
    seed: int | None = Field(default=None, ge=0)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), max_length=16)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        """Null means default; what would change the answer and isn't supported is refused."""
        if not isinstance(data, dict):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        refused = [key for key, neutral in NEUTRAL.items() if key in given and given[key] not in neutral]
        if refused:
            raise ValueError(f"{', '.join(refused)} not supported by this server")
        return given

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        """A single stop string becomes a list of one."""
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _consistent(self) -> GenerationRequest:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    def sampling(self, *, max_tokens: int, choice: int) -> Sampling:
        """The settings of one choice; choices of one request differ by their seed."""
        seed = None if self.seed is None else self.seed + choice
        return Sampling(max_tokens, self.temperature, self.top_p, max(self.top_k, 0), seed=seed, stop=self.stop)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: list[str | list[int]] = Field(min_length=1, max_length=64)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @field_validator("prompt", mode="before")
    @classmethod
    def _listed_prompts(cls, prompt: Any) -> Any:
        """A single prompt, text or ids, becomes a list of one."""
        single = isinstance(prompt, str) or (isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int))
        return [prompt] if single else prompt

    @model_validator(mode="after")
    def _streamable(self) -> CompletionRequest:
        if self.stream and (self.echo or self.logprobs is not None):
            raise ValueError("echo and logprobs can't be streamed; set stream to false")
        return self


class TextPart(BaseModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message as it is sent."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """The message with its parts joined."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: Literal[False] = False

    @model_validator(mode="after")
    def _agreeing(self) -> ChatRequest:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self
