"""One model of each family that writes, as a served folder and as transformers opens it."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm.data.config import TokenizeConfig
from llm.data.tokenizer import train
from llm.export import huggingface, onnx
from llm.export.config import ExportConfig
from llm.model.config import parse_model
from llm.model.families import build
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine

VOCAB_SIZE, CONTEXT_TOKENS = 600, 512
LLAMA = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 48, "max_positions": CONTEXT_TOKENS}
FAMILIES: dict[str, dict[str, Any]] = {
    "decoder": LLAMA,
    "decoder, rotated by the attention": LLAMA | {"head_dim": 16, "qk_norm": True},
    "decoder, read as its product leaves it": LLAMA | {"head_dim": 16},
    "moe": LLAMA | {"architecture": "moe", "num_experts": 4, "experts_per_token": 2},
    "gpt2": {name: LLAMA[name] for name in ("width", "num_layers", "num_heads", "max_positions")}
    | {"architecture": "gpt2", "ffn_width": 48},
}
CARD = {"name": "sample", "metadata": {}, "facts": {}, "properties": {}}


@dataclass(frozen=True)
class Written:
    """A model's served folder, and the same weights in transformers."""

    folder: Path
    reference: Any


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    sources = [inspect.getsource(module) for module in (argparse, textwrap)]
    path.write_bytes(train(sources, TokenizeConfig(vocab_size=VOCAB_SIZE, row_tokens=32)))
    return path


@pytest.fixture(scope="session", params=FAMILIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Written:
    return write(FAMILIES[request.param], tmp_path_factory.mktemp(request.param), tokenizer_file)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Written:
    return write(LLAMA, tmp_path_factory.mktemp("decoder"), tokenizer_file)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A smaller model with the same tokenizer and other opinions."""
    return write(LLAMA | {"num_layers": 1}, tmp_path_factory.mktemp("stranger"), tokenizer_file, seed=1).folder


@pytest.fixture(scope="session")
def served(decoder: Written) -> Iterator[Engine]:
    """The decoder with few slots and small steps, so that requests meet."""
    engine = Engine(decoder.folder, model_id="decoder", config=EngineConfig(threads=1, slots=4, prefill_tokens=16))
    yield engine
    engine.close()


def write(sizes: dict[str, Any], folder: Path, tokenizer_file: Path, *, seed: int = 0) -> Written:
    """Random weights wide enough that logits lie apart; ids that are no text stay unlikely."""
    torch.manual_seed(seed)
    model: Any = build(parse_model(sizes), VOCAB_SIZE).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    with torch.no_grad():
        model.embedding.weight[:6] = 0.0
    for name in ("onnx", "huggingface"):
        (folder / name).mkdir()
    onnx.write(model, tokenizer_file, folder / "onnx", ExportConfig())
    huggingface.write(model, tokenizer_file, folder / "huggingface", card=CARD)
    return Written(folder / "onnx", AutoModelForCausalLM.from_pretrained(folder / "huggingface", dtype=torch.float32).eval())
