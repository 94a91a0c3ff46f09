"""An exported model's folder, checked before anything in it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from llm.data.tokenizer import Tokenizer, find
from llm.errors import ArtifactError

REMEDY = "point to an `onnx` folder of export, or run export again"


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
    """The verified `onnx` folder at `path`, or inside the export artifact at `path`.

    Raises: ArtifactError if a file is missing or damaged, the tokenizer is another model's, or the graph reads
    weights from outside the folder.
    """
    folder = path / "onnx" if (path / "onnx" / "model.onnx").is_file() else path
    for name in ("model.onnx", "config.json", find(folder).name):
        if not (folder / name).is_file():
            raise ArtifactError("no model to serve", value=f"{folder} has no {name}", remedy=REMEDY)
    facts = _read_facts(folder)
    _check_vocabulary(folder, facts.vocab_size)
    check_external_data(folder / "model.onnx")
    return facts


def _read_facts(folder: Path) -> ModelFolder:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return ModelFolder(
            path=folder,
            vocab_size=int(config["vocab_size"]),
            context_tokens=int(config["max_position_embeddings"]),
            num_layers=int(config["num_hidden_layers"]),
            num_kv_heads=int(config["num_key_value_heads"]),
            head_dim=int(config["head_dim"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError("config.json can't be read", value=f"{folder} ({error})", remedy=REMEDY) from error


def _check_vocabulary(folder: Path, vocab_size: int) -> None:
    try:
        pieces = Tokenizer.load(folder).vocab_size
    except (OSError, RuntimeError, ValueError, ArtifactError) as error:
        raise ArtifactError("tokenizer can't be read", value=find(folder), remedy=REMEDY) from error
    if pieces != vocab_size:
        raise ArtifactError("tokenizer and model disagree", value=f"{pieces} pieces, {vocab_size} embeddings", remedy=REMEDY)


def check_external_data(graph: Path) -> None:
    """Refuse a graph whose weights lie outside its own folder, behind a link, or nowhere.

    ONNX lets any tensor name a file to read, which makes a downloaded model a way to read the machine's files.
    Source: https://onnx.ai/onnx/repo-docs/ExternalData.html.
    """
    folder = graph.parent.resolve()
    for location in sorted({location for tensor in tensors(_parse(graph)) for location in _locations(tensor)}):
        target = graph.parent / location
        if Path(location).is_absolute() or target.is_symlink() or not target.resolve().is_relative_to(folder):
            raise ArtifactError("graph reads weights from outside its folder", value=location, remedy=REMEDY)
        if not target.is_file():
            raise ArtifactError("graph's weights are missing", value=target, remedy=REMEDY)


def _parse(graph: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(graph), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ArtifactError("graph can't be read", value=f"{graph} ({error})", remedy=REMEDY) from error
    if not model.graph.node:
        raise ArtifactError("graph is empty", value=graph, remedy=REMEDY)
    return model


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a graph: initialisers, sparse ones, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for _, value in message.ListFields():
        for item in [value] if isinstance(value, Message) else value if _holds_messages(value) else []:
            yield from tensors(item)


def _holds_messages(value: object) -> bool:
    return hasattr(value, "add")


def _locations(tensor: onnx.TensorProto) -> Iterator[str]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
