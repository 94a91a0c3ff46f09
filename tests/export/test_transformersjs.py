"""What the stage leaves beside its folders: the layout of transformers.js, and files for llama.cpp where they are asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf

from llm.export import transformersjs
from tests.export.conftest import LLAMA


def test_the_artifact_is_laid_out_for_transformersjs(exporting: Any) -> None:
    folder = exporting(LLAMA, gguf=("q8_0",)).folder
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        assert (folder / name).read_bytes() == (folder / "onnx" / name).read_bytes()
    (file,) = (folder / "gguf").iterdir()
    assert file.name == "sample-q8_0.gguf"
    assert gguf.GGUFReader(file).fields["general.name"].contents() == "sample"


def test_weights_beside_a_graph_are_announced(exported: Any, tmp_path: Path) -> None:
    shutil.copytree(exported.folder / "onnx", tmp_path / "onnx")
    for name in ("model.onnx_data", "model_int8.onnx_data"):
        (tmp_path / "onnx" / name).touch()
    transformersjs.write(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]
    assert told == {"use_external_data_format": {"model.onnx": 1, "model_int8.onnx": 1}}
