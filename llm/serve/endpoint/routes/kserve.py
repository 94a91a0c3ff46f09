"""The open inference protocol, version 2: a text in, a text out.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, ValidationError, model_validator
from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.answers import ASKING, READING, Answer, errors
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.generate import Submitted, gathered, start
from llm.serve.endpoint.requests import GenerationRequest, RequestModel
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.visit import Visit, visit_of
from llm.serve.endpoint.wire import StrictRoute, TimeoutSeconds

INPUT, OUTPUT = "text_input", "text_output"
DEFAULT_TOKENS = 16
MAX_TEXTS = 1_024
SETTINGS = frozenset(GenerationRequest.model_fields) - {"model"}
Scalar = bool | int | float | str


class Tensor(Answer):
    """A named tensor, without its data."""

    name: str
    datatype: Literal["BYTES"]
    shape: list[int]


class TextTensor(Tensor):
    """A tensor of texts."""

    data: list[str]


class ServerFacts(Answer):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class Live(Answer):
    """The process answers."""

    live: bool


class IsReady(Answer):
    """Requests are taken."""

    ready: bool


class ModelFacts(Answer):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class ModelReady(Answer):
    """Whether a model is loaded."""

    name: str
    ready: bool


class InferAnswer(Answer):
    """The texts written."""

    model_name: str
    model_version: str
    id: str
    outputs: list[TextTensor]


class InputTensor(RequestModel):
    """The prompts."""

    name: Literal["text_input"]
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES"]
    data: list[str] = Field(min_length=1, max_length=MAX_TEXTS)
    parameters: dict[str, Scalar] = Field(default={}, max_length=32, description="accepted; changes nothing")

    @model_validator(mode="after")
    def _filled(self) -> InputTensor:
        size = 1
        for axis in self.shape:
            size *= axis
        if size != len(self.data):
            raise ApiError(400, f"the shape holds {size} texts, data has {len(self.data)}", param="inputs")
        return self


class OutputTensor(RequestModel):
    """A tensor that is asked for."""

    name: Literal["text_output"]
    parameters: dict[str, Scalar] = Field(default={}, max_length=32, description="accepted; changes nothing")


class InferRequest(RequestModel):
    """POST /v2/models/{model}/infer."""

    id: str = Field(default="", max_length=200)
    parameters: dict[str, Scalar] = Field(default={}, max_length=32, description="max_tokens, temperature, … as for /v1/completions")
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputTensor] = Field(default=[], max_length=1)


def kserve(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=StrictRoute, prefix="/v2")

    @router.get("", response_model=ServerFacts, responses=errors(*READING))
    async def server() -> dict[str, Any]:
        """What serves."""
        return {"name": "trainyard", "version": version("trainyard"), "extensions": []}

    @router.get("/health/live", response_model=Live, responses=errors(*READING))
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/health/ready", response_model=IsReady, responses=errors(*READING, 503))
    async def ready() -> dict[str, bool]:
        """Every model is loaded, and requests are taken."""
        if not service.ready:
            raise ApiError(503, "not ready", code="not_ready")
        return {"ready": True}

    @router.get("/models/{model}", response_model=ModelFacts, responses=errors(*READING, 404))
    async def model(model: str, request: Request) -> dict[str, Any]:
        """What a model takes and gives."""
        served = service.lease(model, visit_of(request))
        inputs, outputs = ({"name": name, "datatype": "BYTES", "shape": [-1]} for name in (INPUT, OUTPUT))
        return {"name": model, "versions": [served.version], "platform": "onnxruntime_onnx", "inputs": [inputs], "outputs": [outputs]}

    @router.get("/models/{model}/ready", response_model=ModelReady, responses=errors(*READING, 404))
    async def model_ready(model: str, request: Request) -> dict[str, Any]:
        """Whether a model is loaded."""
        service.lease(model, visit_of(request))
        return {"name": model, "ready": True}

    @router.post("/models/{model}/infer", response_model=InferAnswer, responses=errors(*ASKING))
    async def infer(model: str, body: InferRequest, request: Request, timeout: TimeoutSeconds = None) -> dict[str, Any]:
        """Continue each prompt."""
        visit = visit_of(request)
        with _placed():
            submitted = await run_in_threadpool(_start, service, visit, model, body, timeout)
            texts = [written.text for written in await gathered(submitted)]
        output = {"name": OUTPUT, "datatype": "BYTES", "shape": [len(texts)], "data": texts}
        return {"model_name": model, "model_version": submitted.served.version, "id": body.id or visit.record.id, "outputs": [output]}

    return router


def _start(service: Service, visit: Visit, model: str, body: InferRequest, timeout_seconds: float | None) -> Submitted:
    served = service.lease(model, visit)
    settings = _settings(model, body.parameters)
    max_tokens = DEFAULT_TOKENS if settings.max_tokens is None else settings.max_tokens
    texts = body.inputs[0].data
    return start(service, served, visit, settings, texts, max_tokens=max_tokens, timeout_seconds=timeout_seconds, param="inputs")


@contextmanager
def _placed() -> Iterator[None]:
    """Have an error name a parameter by its place in the request."""
    try:
        yield
    except ApiError as error:
        if error.code == "unknown_parameter" or error.param in SETTINGS:
            error.param = f"parameters.{error.param}"
        raise


def _settings(model: str, parameters: dict[str, Scalar]) -> GenerationRequest:
    """Parameters as a completion takes them.

    Raises: ApiError for one that isn't taken, or has a value that isn't.
    """
    for name in ("model", "n", "stream"):
        if name in parameters:
            raise ApiError(400, f"{name} is no parameter here", param=f"parameters.{name}")
    try:
        return GenerationRequest.model_validate({"model": model, **parameters})
    except ValidationError as error:
        first = error.errors()[0]
        name = f"parameters.{first['loc'][0]}"
        raise ApiError(400, f"{name}: {first['msg']}", param=name) from None
