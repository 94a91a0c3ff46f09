"""A folder of weights to start from: one that Trainyard wrote, or a public checkpoint in Hugging Face format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm.errors import ArtifactError
from llm.model import pretrained, weights


def load(folder: Path) -> Any:
    """The model in `folder`, on the CPU, in evaluation mode.

    Raises: ArtifactError if the folder holds none, it can't be read, or it needs what our architectures haven't got.
    """
    return weights.load(folder) if is_ours(folder) else pretrained.load(folder)


def is_ours(folder: Path) -> bool:
    """Whether Trainyard wrote the folder: a public checkpoint has its sizes at the top of `config.json`.

    Raises: ArtifactError if there is no `config.json`.
    """
    try:
        return "model" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "name a folder with config.json and model.safetensors"
        raise ArtifactError("no model to start from", value=f"{folder} ({error})", remedy=remedy) from error
