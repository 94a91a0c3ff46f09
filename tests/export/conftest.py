"""A small model with strong opinions, its tokenizer, and the export that every test of this room opens."""

from __future__ import annotations

import argparse
import inspect
import json
import json.decoder
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.config import TokenizeConfig
from llm.data.tokenizer import Tokenizer, train
from llm.export.config import ExportConfig
from llm.export.export import export
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.model.weights import save

SOURCES = [inspect.getsource(module) for module in (argparse, textwrap, json.decoder)]
CARD = {"name": "sample", "metadata": {"license": "apache-2.0", "tags": ["trainyard"]}, "facts": {"bits | byte": "1.5"}}


def a_model(vocab_size: int, *, tied: bool = True, layers: int = 2) -> Decoder:
    """Random weights, wider than at the start of training, so that logits lie far apart and errors show."""
    torch.manual_seed(0)
    config = DecoderConfig(
        width=32, num_layers=layers, num_heads=4, num_kv_heads=2, ffn_width=48, max_positions=128, rope_theta=5_000.0, tied_embeddings=tied
    )
    model = Decoder(config, vocab_size).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return model


@dataclass(frozen=True)
class Exported:
    """The export artifact and what it was made from."""

    folder: Path
    trained: Path
    tokenized: Path
    model: Decoder
    result: dict[str, object]

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


@pytest.fixture(scope="session")
def exported(tokenized: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    trained, out = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("exported")
    model = a_model(700)
    save(model, trained)
    result = export(trained, tokenized, out, ExportConfig(), card=CARD)
    return Exported(out, trained, tokenized, model, result)
