"""What a folder has to be before anything in it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import ArtifactError
from llm.export.config import ExportConfig
from llm.export.onnx import write
from llm.model.config import parse_model
from llm.model.families import build
from llm.serve.models.folder import open_folder

SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "ffn_width": 16, "max_positions": 32}
GENERATOR = {"width": 8, "num_layers": 1, "num_heads": 1, "ffn_width": 8}
VOCAB_SIZE = 600


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        (SIZES | {"architecture": "encoder"}, "BertForMaskedLM"),
        (SIZES | {"architecture": "electra", "embedding_width": 8, "generator": GENERATOR}, "ElectraForPreTraining"),
        (SIZES | {"architecture": "encoder_decoder"}, "T5ForConditionalGeneration"),
    ],
)
def test_an_export_that_writes_no_text_is_refused_by_name(folder: Path, tmp_path: Path, sizes: dict[str, Any], name: str) -> None:
    torch.manual_seed(0)
    (tmp_path / "onnx").mkdir()
    write(build(parse_model(sizes), VOCAB_SIZE).eval(), folder / "tokenizer.model", tmp_path / "onnx", ExportConfig())
    for given in (tmp_path, tmp_path / "onnx"):
        with pytest.raises(ArtifactError, match=f"architecture isn't served: {name} in .*; serve a decoder, GPT-2 or a mixture"):
            open_folder(given)


def test_an_export_and_its_folder_of_graphs_are_opened_alike(folder: Path) -> None:
    assert open_folder(folder) == open_folder(folder / "onnx")
