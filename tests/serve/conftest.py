"""One small model behind a real server on a free loopback port."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from fastapi import FastAPI

from llm.data.config import TokenizeConfig
from llm.data.tokenizer import train
from llm.export.config import ExportConfig
from llm.export.onnx import write
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.server import Server, server_config
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.models.catalogue import Catalogue

CONTEXT_TOKENS = 4000
BRIEF_CONTEXT_TOKENS = 48
SOURCES = [inspect.getsource(module) for module in (argparse, textwrap)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export artifact whose model talks at random and never ends by itself."""
    return _exported(tmp_path_factory.mktemp("artifact"), CONTEXT_TOKENS)


@pytest.fixture(scope="session")
def brief_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose answers are short, because its context is."""
    return _exported(tmp_path_factory.mktemp("brief"), BRIEF_CONTEXT_TOKENS)


def _exported(artifact: Path, context_tokens: int) -> Path:
    (artifact / "onnx").mkdir()
    (artifact / "tokenizer.model").write_bytes(train(SOURCES, TokenizeConfig(vocab_size=600, row_tokens=32)))
    torch.manual_seed(3)
    config = DecoderConfig(width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=context_tokens)
    model = Decoder(config, 600).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    with torch.no_grad():
        for block in model.blocks:  # whatever the text, the first of its numbers is what the embedding says
            block.attention.output.weight[0] = block.feed_forward.down.weight[0] = 0.0
        model.embedding.weight[:6], model.embedding.weight[:, 0] = 0.0, 1.0
        model.embedding.weight[:6, 0] = 0.1  # control ids: never drawn
        model.norm.weight[0] = 100.0
    write(model, artifact / "tokenizer.model", artifact / "onnx", ExportConfig())
    return artifact


@pytest.fixture(scope="session")
def engine(folder: Path) -> Engine:
    return Engine(folder, model_id="small", config=EngineConfig(threads=1))


@pytest.fixture(scope="session")
def catalogue(engine: Engine) -> Catalogue:
    return Catalogue.of(engine)


Running = Callable[[FastAPI], contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="session")
def running() -> Running:
    """Starts a server and gives its address for the length of a block."""
    return _running


@contextlib.contextmanager
def _running(app: FastAPI) -> Iterator[str]:
    """The address of a server that runs `app` in a thread."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    service = app.state.service
    server = Server(server_config(app, service.settings.limits, log_level="warning"), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    while not server.started:
        time.sleep(0.01)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def address(catalogue: Catalogue, running: Running) -> Iterator[str]:
    with running(create_app(catalogue)) as address:
        yield address


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
