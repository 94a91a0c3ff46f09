"""An exported model's folder, checked before anything in it is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.data.tokenizer import Tokenizer, find
from llm.errors import ArtifactError
from llm.serve.models.graph import REMEDY, check_graph, read_plain, shown

WRITERS = ("ForCausalLM", "LMHeadModel")
CONFIG_BYTES, TOKENIZER_BYTES = 2**20, 2**27
MOST = {
    "vocab_size": 2**24,
    "max_position_embeddings": 2**24,
    "num_hidden_layers": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**14,
}


@dataclass(frozen=True)
class ModelFolder:
    """What the folder says about its model."""

    path: Path
    vocab_size: int
    context_tokens: int
    num_layers: int
    num_kv_heads: int
    head_dim: int


def open_folder(path: Path) -> ModelFolder:
    """The checked `onnx` folder at `path`, or inside the export artifact at `path`.

    Raises: ArtifactError if the model doesn't write text, a file is missing or damaged, the tokenizer is another model's,
    or a graph is none that export writes (graph.py).
    """
    inner = path / "onnx"
    folder = inner if any((inner / name).is_file() for name in ("model.onnx", "config.json")) else path
    _check_present(folder, "config.json")
    facts = _read_facts(folder)
    _check_present(folder, "model.onnx", find(folder).name)
    for graph in sorted(folder.glob("*.onnx")):
        check_graph(graph)
    _check_vocabulary(folder, facts.vocab_size)
    return facts


def _check_present(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ArtifactError("no model to serve", value=f"{folder} has no {name}", remedy=REMEDY)


def _read_facts(folder: Path) -> ModelFolder:
    try:
        config = json.loads(read_plain(folder / "config.json", CONFIG_BYTES))
        _check_architecture(config, folder)
        return ModelFolder(
            path=folder,
            vocab_size=_count(config, "vocab_size"),
            context_tokens=_count(config, "max_position_embeddings"),
            num_layers=_count(config, "num_hidden_layers"),
            num_kv_heads=_count(config, "num_key_value_heads"),
            head_dim=_count(config, "head_dim"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError("config.json can't be read", value=f"{folder} ({error})", remedy=REMEDY) from error


def _check_architecture(config: dict[str, Any], folder: Path) -> None:
    """Refuse a model whose class, as transformers calls it, writes no text token by token; one that names none goes on."""
    classes = config.get("architectures") or []
    if classes and not str(classes[0]).endswith(WRITERS):
        remedy = "serve a decoder, GPT-2 or a mixture of experts"
        raise ArtifactError("architecture isn't served", value=f"{shown(classes[0])} in {folder}", remedy=remedy)


def _count(config: dict[str, Any], name: str) -> int:
    value = config[name]
    if type(value) is not int or not 0 < value <= MOST[name]:
        raise ValueError(f"{name} has to be from 1 to {MOST[name]}")
    return value


def _check_vocabulary(folder: Path, vocab_size: int) -> None:
    path = find(folder)
    try:
        pieces = Tokenizer.read(read_plain(path, TOKENIZER_BYTES)).vocab_size
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ArtifactError("tokenizer can't be read", value=f"{path} ({error})"[:500], remedy=REMEDY) from error
    if pieces != vocab_size:
        raise ArtifactError("tokenizer and model disagree", value=f"{pieces} pieces, {vocab_size} embeddings", remedy=REMEDY)
