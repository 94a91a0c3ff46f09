"""Requests for text as models: what is accepted, with its bounds, as the OpenAPI document shows it.

Names and meanings are OpenAI's; top_k, min_p, repetition_penalty, ignore_eos, structured_outputs and token-id prompts are
vLLM's. What would change the answer and isn't served is refused by name, and so is what nobody knows; what OpenAI takes for
its own books (user, metadata, store …) is accepted and does nothing.

Source: https://platform.openai.com/docs/api-reference, https://docs.vllm.ai/en/latest/serving/openai_compatible_server.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from llm.serve.endpoint.errors import ApiError, unknown
from llm.serve.engine.sampling import Guide, Sampling

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_CHOICES = 8
MAX_MESSAGES = 2_048
MAX_LOGPROBS = 20
MAX_BIASED = 300
MAX_SCHEMA_CHARACTERS = 32_768
MAX_REGEX_CHARACTERS = 2_048
MAX_BEAMS = 8
LIMITING = ("logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty", "ignore_eos")
LEAST_TEMPERATURE = 1e-3  # below it, logits divided by it may leave the numbers; the likeliest token is meant
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "suffix": ("",),
}


class RequestModel(BaseModel):
    """A request or a part of one: exact types, no unknown names, and null means default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        names = [field.alias or name for name, field in cls.model_fields.items()]
        for name in given:
            if name not in names:
                raise ApiError(400, f"{name[:64]!r}: {unknown(name, names)}", param=name[:64], code="unknown_parameter")
            if name in NEUTRAL and given[name] not in NEUTRAL[name]:
                raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The document says that null is accepted."""
        schema = handler(core)
        own = handler.resolve_ref_schema(schema)
        for name, field in own.get("properties", {}).items():
            if name not in own.get("required", []):
                own["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        return schema


def neutral(name: str) -> Any:
    """A field of which only the values that change nothing are accepted."""
    return Field(default=None, json_schema_extra={"enum": list(NEUTRAL[name])}, description="not supported beyond these values")


def ignored() -> Any:
    """A field that changes nothing."""
    return Field(default=None, description="accepted; changes nothing")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _listed_prompts(prompt: Any) -> Any:
    """A single prompt, text or ids, becomes a list of one."""
    return [prompt] if isinstance(prompt, list) and prompt and isinstance(prompt[0], int) else _listed(prompt)


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_listed, json_schema_input_type=StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)]),
]


def _typed_prompts(prompt: Any) -> Any:
    """Texts or lists of ids; a union would report an error once per alternative."""
    prompts = _listed_prompts(prompt)
    texts = isinstance(prompts, list) and all(isinstance(text, str) for text in prompts)
    ids = isinstance(prompts, list) and all(isinstance(row, list) and row and all(type(id) is int for id in row) for row in prompts)
    if not prompts or not (texts or ids):
        raise ValueError("give a text, a list of texts, a list of token ids, or a list of such lists")
    return prompts


Prompts = Annotated[
    list[Any],
    Field(min_length=1),
    BeforeValidator(
        _typed_prompts,
        json_schema_input_type=str | Annotated[list[str], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)],
    ),
]


class StreamOptions(RequestModel):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool = ignored()


class StructuredOutputs(RequestModel):
    """A form that the text has to have: one of these."""

    json_: dict[str, Any] | None = Field(default=None, alias="json", description="JSON schema")
    regex: str | None = Field(default=None, min_length=1, max_length=MAX_REGEX_CHARACTERS)
    choice: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(default=None, min_length=1, max_length=64)

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if sum(form is not None for form in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("give exactly one of json, regex and choice")
        return self

    def guide(self) -> Guide:
        """As the engine takes it."""
        if self.choice:
            return Guide(regex="|".join(f"({_literal(text)})" for text in self.choice))
        return Guide(json_schema=_bounded(self.json_, "structured_outputs"), regex=self.regex)


def _literal(text: str) -> str:
    """A regex for exactly this text."""
    return "".join(f"\\{letter}" if letter in r"\.+*?()|[]{}^$/#&-~" else letter for letter in text)


def _bounded(schema: dict[str, Any] | None, param: str) -> dict[str, Any] | None:
    if schema is not None and len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
        raise ApiError(400, f"a JSON schema may have {MAX_SCHEMA_CHARACTERS} characters", param=param)
    return schema


class GenerationRequest(RequestModel):
    """Settings that completions and chats share."""

    model: str = Field(max_length=200)
    max_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, lt=2**31, description="0 or -1: all tokens")
    min_p: float = Field(default=0.0, ge=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=10)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default={}, max_length=MAX_BIASED
    )
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopStrings = Field(default=[])
    ignore_eos: bool = False
    beams: int = Field(default=1, ge=1, le=MAX_BEAMS, description="above 1: beam search for the likeliest text")
    structured_outputs: StructuredOutputs | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = ignored()
    metadata: dict[str, str] | None = ignored()
    store: bool | None = ignored()
    service_tier: str | None = ignored()
    safety_identifier: str | None = ignored()
    prompt_cache_key: str | None = ignored()

    @model_validator(mode="after")
    def _consistent(self) -> GenerationRequest:
        if self.stream_options and not self.stream:
            raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
        if self.beams > 1 and self.candidates > 1:
            raise ApiError(400, "beam search writes one text; set n to 1", param="beams")
        return self

    def sampling(self, *, max_tokens: int, choice: int) -> Sampling:
        """The settings of one choice; choices of one request differ by their seed."""
        return Sampling(
            max_tokens,
            self.temperature if self.temperature >= LEAST_TEMPERATURE else 0.0,
            self.top_p,
            max(self.top_k, 0),
            self.min_p,
            self.presence_penalty,
            self.frequency_penalty,
            self.repetition_penalty,
            {int(id): bias for id, bias in self.logit_bias.items()},
            seed=None if self.seed is None else (self.seed + choice) % 2**64,
            stop=tuple(self.stop),
            guide=self.guide(),
            beams=self.beams,
            ignore_eos=self.ignore_eos,
        )

    def guide(self) -> Guide | None:
        """The form that the text has to have."""
        return self.structured_outputs.guide() if self.structured_outputs else None

    @property
    def limiting(self) -> str | None:
        """The setting by which a text may have no token to go on with; None if none limits it."""
        if self.guide():
            return "structured_outputs" if self.structured_outputs else "response_format"
        return next((name for name in LIMITING if getattr(self, name) != GenerationRequest.model_fields[name].default), None)

    @property
    def candidates(self) -> int:
        """Texts written for each prompt."""
        return self.n

    @property
    def top(self) -> int | None:
        """Alternatives to report per token; None: not even the token's own log-probability."""
        return None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompts
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    suffix: str | None = neutral("suffix")

    @model_validator(mode="after")
    def _agreeing(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < self.n:
            raise ApiError(400, "best_of is less than n", param="best_of")
        if self.stream and self.candidates > self.n:
            raise ApiError(400, "the best of several can't be streamed; set stream to false", param="best_of")
        return self

    @property
    def candidates(self) -> int:
        return self.best_of or self.n

    @property
    def top(self) -> int | None:
        """The best of several is found by log-probability, so that it has to be known."""
        return 0 if self.logprobs is None and self.candidates > self.n else self.logprobs


class TextPart(RequestModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(RequestModel):
    """A message as it is sent."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts, json_schema_input_type=str | list[TextPart])]
    name: str | None = ignored()
    refusal: str | None = ignored()

    def plain(self) -> dict[str, str]:
        """The message with its parts joined."""
        return {"role": "system" if self.role == "developer" else self.role, "content": "".join(part.text for part in self.content)}


class NamedSchema(RequestModel):
    """A JSON schema under a name."""

    name: str = Field(default="", max_length=64)
    description: str = ignored()
    schema_: dict[str, Any] = Field(default={}, alias="schema")
    strict: bool = ignored()


class ResponseFormat(RequestModel):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema is given with the type json_schema, and only then")
        return self

    def guide(self) -> Guide | None:
        """As the engine takes it."""
        if self.type == "json_object":
            return Guide(json_schema={"type": "object"})
        return Guide(json_schema=_bounded(self.json_schema.schema_, "response_format")) if self.json_schema else None


class RetrievalRequest(RequestModel):
    """Passages of the server's documents as context of a chat."""

    top: int | None = Field(default=None, ge=0, le=16, description="passages at most; 0: none")


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    retrieval: RetrievalRequest | None = None
    tools: list[Any] | None = neutral("tools")
    tool_choice: str | None = neutral("tool_choice")
    parallel_tool_calls: bool | None = ignored()
    functions: list[Any] | None = neutral("functions")
    function_call: str | None = neutral("function_call")
    modalities: list[str] | None = neutral("modalities")

    @model_validator(mode="after")
    def _agreeing(self) -> ChatRequest:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise ApiError(400, "max_tokens and max_completion_tokens differ; send one of them", param="max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.response_format and self.response_format.guide() and self.structured_outputs:
            raise ApiError(400, "send response_format or structured_outputs, not both", param="structured_outputs")
        return self

    def guide(self) -> Guide | None:
        return (self.response_format and self.response_format.guide()) or super().guide()

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wanted_tokens(self) -> int | None:
        """How long the answer may be; None: as the context allows."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
