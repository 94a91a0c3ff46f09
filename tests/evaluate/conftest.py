"""A small tokenizer, a small model and a few documents that every test of this room scores, also as artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.config import TokenizeConfig
from llm.data.document import Document, write_documents
from llm.data.tokenizer import Tokenizer, train
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.model.weights import save

CODE = "def add(first, second):\n    return first + second\n\n\n"
DOCS = "The function adds two numbers – café, naïve, 数 – and returns their sum. "
ROW_TOKENS = 16


def a_model(vocab_size: int, *, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32), vocab_size).eval()


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    texts = {"code": [CODE * n for n in (1, 2, 3)], "docs": [DOCS * n for n in (1, 2, 4)]}
    return [Document(f"{domain}/{number}", text, "test", domain=domain) for domain in texts for number, text in enumerate(texts[domain])]


@pytest.fixture(scope="session")
def tokenizer_file(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train([document.text for document in documents], TokenizeConfig(vocab_size=330, row_tokens=ROW_TOKENS)))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Decoder:
    return a_model(tokenizer.vocab_size)


@dataclass(frozen=True)
class Artifacts:
    """Folders as the stages before evaluate leave them, and a way to make another trained model."""

    tokenized: Path
    deduped: Path
    trained: Callable[[int], Path]


@pytest.fixture
def artifacts(documents: list[Document], tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> Artifacts:
    tokenized, deduped = tmp_path / "tokenized", tmp_path / "deduped"
    for folder in (tokenized, deduped):
        folder.mkdir()
    (tokenized / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    stream = [token for document in documents * 20 for token in tokenizer.document_ids(document.text)]
    np.array(stream, dtype=np.uint16).tofile(tokenized / "train.tokens")
    facts = {"dtype": "uint16", "row_tokens": ROW_TOKENS, "vocab_size": tokenizer.vocab_size, "splits": {}}
    (tokenized / "rows.json").write_text(json.dumps(facts))
    write_documents(deduped / "test-00000.parquet", documents)

    def trained(seed: int) -> Path:
        folder = tmp_path / f"trained-{seed}"
        folder.mkdir()
        save(a_model(tokenizer.vocab_size, seed=seed), folder)
        return folder

    return Artifacts(tokenized, deduped, trained)
