"""The endpoint on Ray Serve answers as the one without, and refuses as it."""

from __future__ import annotations

import inspect
import socket
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from llm.cluster.serve import Replicas, replicated
from llm.data.config import TokenizeConfig
from llm.data.tokenizer import train
from llm.errors import ArtifactError, PromotionError, RecipeError
from llm.export.config import ExportConfig
from llm.export.onnx import write
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.engine.config import EngineConfig
from llm.serve.models.catalogue import Catalogue
from llm.serve.models.config import ModelsConfig
from llm.serve.models.spec import ModelSpec

MODELS = ModelsConfig(engine=EngineConfig(threads=1, slots=4, prefix_tokens=0))  # a prompt read before is read otherwise: last bits differ


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSpec]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "tokenizer.model").write_bytes(train([inspect.getsource(textwrap)], TokenizeConfig(vocab_size=400, row_tokens=32)))
    torch.manual_seed(3)
    config = DecoderConfig(width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=4096)
    (folder / "onnx").mkdir()
    write(Decoder(config, 400).eval(), folder / "tokenizer.model", folder / "onnx", ExportConfig())
    return [ModelSpec.parse(f"small={folder}")]


@pytest.fixture(scope="module")
def settings() -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Settings(port=port, models=MODELS, limits=LimitsConfig(body_bytes=10_000))


def test_answers_that_run_are_finished_first(ray_cluster: None, specs: list[ModelSpec], settings: Settings, home: Path) -> None:
    """Ends before the replicas of the other tests begin: there is one application of this name."""
    body = {"model": "small", "prompt": "def", "max_tokens": 4_000, "ignore_eos": True, "stream": True}
    with ExitStack() as ending, ThreadPoolExecutor(1) as thread:
        address = ending.enter_context(replicated(specs, settings, Replicas(least=1, most=1, cpus=0.1), home))
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            ended = thread.submit(ending.close)
            rest = [line for line in lines if line]
        ended.result()
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in "".join(rest[-3:]).replace(" ", "")


@pytest.fixture(scope="module")
def address(ray_cluster: None, specs: list[ModelSpec], settings: Settings, home: Path) -> Iterator[str]:
    with replicated(specs, settings, Replicas(least=2, most=2, cpus=0.1), home) as address:
        yield address


@pytest.fixture(scope="module")
def alone(specs: list[ModelSpec], settings: Settings) -> Iterator[TestClient]:
    catalogue = Catalogue.open(specs, settings.models)
    with TestClient(create_app(catalogue, settings), base_url="http://127.0.0.1") as client:
        yield client
    catalogue.close()


REQUESTS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/health", None),
    ("GET", "/ready", None),
    ("GET", "/v1/models/small", None),
    ("GET", "/v1/models/large", None),
    ("GET", "/nowhere", None),
    ("POST", "/v1/completions", {"model": "small", "prompt": "def wrap", "max_tokens": 8, "temperature": 0, "logprobs": 2}),
    ("POST", "/v1/completions", {"model": "small", "prompt": "def wrap", "max_tokens": 8, "seed": 7}),
    ("POST", "/v1/completions", {"model": "small", "prompt": "def wrap", "max_tokens": 8, "temperature": 0, "stream": True}),
    ("POST", "/v1/completions", {"model": "large", "prompt": "def wrap"}),
    ("POST", "/v1/completions", {"model": "small", "prompt": "def wrap", "max_tokens": 100_000}),
    ("POST", "/v1/completions", {"model": "small", "prompt": "long " * 10_000}),
    ("POST", "/v1/chat/completions", {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "seed": 1}),
    ("POST", "/v1/chat/completions", {"model": "small", "messages": []}),
]
OF_THE_MOMENT = ("id", "created")


def plain(response: httpx.Response) -> tuple[int, object]:
    """Status and body without what differs from one request to the next; of a stream, the text however it was cut."""
    bodies = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    parsed = [httpx.Response(200, text=body).json() if body.startswith("{") else body for body in bodies]
    if response.headers["content-type"].startswith("text/event-stream"):
        choices = [body["choices"][0] for body in parsed if isinstance(body, dict) and body["choices"]]
        return response.status_code, ["".join(choice["text"] for choice in choices), choices[-1]["finish_reason"], parsed[-1]]
    return response.status_code, [
        {key: value for key, value in body.items() if key not in OF_THE_MOMENT} if isinstance(body, dict) else body for body in parsed
    ]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
def test_answers_are_those_of_the_endpoint_alone(method: str, path: str, body: Any, address: str, alone: TestClient) -> None:
    for _ in range(3):  # both replicas
        assert plain(httpx.request(method, address + path, json=body)) == plain(alone.request(method, path, json=body))


def test_it_listens_on_loopback_only(address: str) -> None:
    port = int(address.rpartition(":")[2])
    outward = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)} - {"127.0.0.1", "127.0.1.1"}
    for host in outward:
        with pytest.raises(OSError, match="refused|unreachable|timed out"):
            socket.create_connection((str(host), port), timeout=1)


@pytest.mark.parametrize(
    ("spec", "changes", "error"),
    [
        ("./nowhere", {}, ArtifactError),
        ("nobody@champion", {}, PromotionError),
        ("small=.", {"host": "0.0.0.0"}, RecipeError),
        ("small=.", {"observe": {"metrics_port": 9100}}, RecipeError),
        ("small=.", {"observe": {"samples": {"folder": "traffic"}}}, RecipeError),
    ],
)
def test_what_can_not_be_served_is_said_before_a_cluster_starts(spec: str, changes: Any, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error), replicated([ModelSpec.parse(spec)], Settings(port=0, **changes), Replicas(), tmp_path):
        pass
