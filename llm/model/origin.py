"""A folder of weights to start from: one that Trainyard wrote, or a public checkpoint in Hugging Face format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm.artifact import sha256_file, sha256_of
from llm.errors import ArtifactError
from llm.model import weights


def load(folder: Path) -> Any:
    """The model in `folder`, on the CPU, in evaluation mode.

    Raises: ArtifactError if the folder holds none, or it can't be read.
    """
    return weights.load(folder)


def is_ours(folder: Path) -> bool:
    """Whether Trainyard wrote the folder: a public checkpoint has its sizes at the top of `config.json`."""
    try:
        return "vocab_size" in (document := json.loads((folder / "config.json").read_text(encoding="utf-8"))) and "model" in document
    except (OSError, ValueError) as error:
        remedy = "name a folder with config.json and model.safetensors"
        raise ArtifactError("no model to start from", value=f"{folder} ({error})", remedy=remedy) from error


def digest(folder: Path) -> str:
    """sha256 over names and bytes of the configuration and weights in `folder`."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return sha256_of({path.name: sha256_file(path) for path in files})
