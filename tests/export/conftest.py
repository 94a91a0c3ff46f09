"""Small models with strong opinions, their tokenizer, and the exports that every test of this room opens."""

from __future__ import annotations

import argparse
import inspect
import json
import json.decoder
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import pytest
import torch

from llm.data.config import TokenizeConfig
from llm.data.tokenizer import Tokenizer, train
from llm.export.config import ExportConfig
from llm.export.export import export
from llm.model.config import parse_model
from llm.model.families import build
from llm.model.weights import save

SOURCES = [inspect.getsource(module) for module in (argparse, textwrap, json.decoder)]
PROPERTIES = {"trainyard.lineage": '{"trained":{"digest":"d","key":"k","stage":"pretrain"}}', "trainyard.licence": "apache-2.0"}
CARD = {
    "name": "sample",
    "metadata": {"license": "apache-2.0", "tags": ["trainyard"]},
    "facts": {"bits | byte": "1.5"},
    "properties": PROPERTIES,
}
LLAMA = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 48, "max_positions": 128}
PLAIN = {"width": 32, "num_layers": 2, "num_heads": 4, "ffn_width": 48, "max_positions": 128}
MOE = LLAMA | {"architecture": "moe", "num_experts": 4, "experts_per_token": 2}
GENERATOR = {"width": 16, "num_layers": 1, "num_heads": 2, "ffn_width": 24}


def a_model(sizes: dict[str, Any], vocab_size: int = 700) -> Any:
    """Random weights, wider than at the start of training, so that logits lie far apart and errors show."""
    torch.manual_seed(0)
    model = build(parse_model(sizes), vocab_size).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    for name, buffer in model.named_buffers():
        torch.nn.init.normal_(buffer, std=0.2 if name.endswith("bias_E") else 0.0)
    return model


def genai_continues(model: onnxruntime_genai.Model, prompt: list[int], *, max_length: int) -> list[int]:
    """What onnxruntime-genai writes greedily after the prompt, until an end or so many tokens in all."""
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=max_length)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(id) for id in generator.get_sequence(0)][len(prompt) :]


@dataclass(frozen=True)
class Exported:
    """The export artifact and what it was made from."""

    folder: Path
    trained: Path
    tokenized: Path
    model: Any
    result: dict[str, Any]

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenized)


@pytest.fixture(scope="session")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tokenized")
    (folder / "tokenizer.model").write_bytes(train(SOURCES, TokenizeConfig(vocab_size=700, row_tokens=32)))
    stream = [token for text in SOURCES for token in Tokenizer.load(folder).document_ids(text)]
    np.array(stream, dtype="<u2").tofile(folder / "test.tokens")
    (folder / "rows.json").write_text(json.dumps({"dtype": "<u2", "row_tokens": 32, "vocab_size": 700}))
    return folder


Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def exporting(tokenized: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Runs the stage on a model of these sizes."""

    def exporting(sizes: dict[str, Any], vocab_size: int = 700, **settings: Any) -> Exported:
        trained, out = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("exported")
        model = a_model(sizes, vocab_size)
        save(model, trained)
        config = ExportConfig(**({"variants": (), "prompts": 3, "prompt_tokens": 20, "greedy_tokens": 24} | settings))
        return Exported(out, trained, tokenized, model, export(trained, tokenized, out, config, card=CARD))

    return exporting


@pytest.fixture(scope="session")
def exported(exporting: Export) -> Exported:
    """The Llama-style decoder."""
    return exporting(LLAMA | {"rope_theta": 5_000.0}, prompts=6, prompt_tokens=48, greedy_tokens=64)
