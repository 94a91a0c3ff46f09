"""A model as a folder: `model.safetensors` under our parameters' names, and `config.json` to rebuild it.

safetensors and JSON hold numbers and text only, so opening a folder of unknown origin runs no code of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from llm.artifact import write_json
from llm.errors import ArtifactError
from llm.model import families
from llm.model.config import ModelConfig, parse_model

REMEDY = "delete this artifact, so that its stage runs again"


def save(model: nn.Module, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write `model.safetensors` and `config.json`; a tied head is stored once, as the embedding.

    `tensors` stand in for those of a model that doesn't hold all of them itself.
    """
    aliases, tensors = tied(model), tensors or model.state_dict()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if name not in aliases}
    config, vocab_size = cast(ModelConfig, model.config), model.vocab_size
    write_tensors(folder / "model.safetensors", weights)
    write_json(folder / "config.json", {"model": config.model_dump(mode="json"), "vocab_size": vocab_size})


def tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one's, and that other's name."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: owner for name, parameter in named if (owner := first.setdefault(id(parameter), name)) != name}


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name as a safetensors file.

    Written by Python and not by `save_file`, whose own error would hide that the disk is full; the price is a
    second copy of the weights in memory for as long as it takes.
    """
    path.write_bytes(safetensors_torch.save(tensors, metadata={"format": "pt"}))


def load(folder: Path) -> Any:
    """The model that `save` wrote, on the CPU, in evaluation mode.

    Raises: ArtifactError if a file is missing or damaged, or the weights don't fit the sizes in `config.json`.
    """
    return assemble(*read_config(folder), read_tensors(folder / "model.safetensors"))


def read_config(folder: Path) -> tuple[ModelConfig, int]:
    """Sizes and vocabulary of the model in `folder`, without its weights."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return parse_model(document["model"]), int(document["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ArtifactError("model configuration can't be read", value=f"{path} ({error})", remedy=REMEDY) from error


def read_tensors(path: Path, remedy: str = REMEDY) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name."""
    try:
        return safetensors_torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError("weights can't be read", value=f"{path} ({error})", remedy=remedy) from error


def assemble(config: ModelConfig, vocab_size: int, weights: dict[str, Tensor], remedy: str = REMEDY) -> Any:
    """A model of these sizes that holds these weights; nothing is initialised twice.

    Raises: ArtifactError if a tensor is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = families.build(config, vocab_size)
    aliases = tied(model)
    weights = weights | {alias: weights[name] for alias, name in aliases.items() if name in weights}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ArtifactError("weights don't fit the model's sizes", value=" ".join(str(error).split()), remedy=remedy) from error
    for alias, name in aliases.items():
        owner, _, parameter = alias.rpartition(".")
        setattr(model.get_submodule(owner), parameter, model.get_parameter(name))
    return model.eval()
