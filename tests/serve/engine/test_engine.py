"""One model from its folder: what is served, and folders that must not be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from llm.errors import ArtifactError
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Sampling


def test_both_the_artifact_and_its_onnx_folder_open(folder: Path, engine: Engine) -> None:
    direct = Engine(folder / "onnx", model_id="small")
    greedy = Sampling(20, temperature=0)
    assert list(direct.submit([1, 50], greedy)) == list(engine.submit([1, 50], greedy))


def test_a_prompt_scores_like_its_generation(engine: Engine) -> None:
    """The same tokens, once written one by one with the cache and once read in one piece."""
    written = [token for chunk in engine.submit([1, 50, 60], Sampling(12, temperature=0), top=1) for token in chunk.tokens]
    read = engine.score([1, 50, 60, *(token.id for token in written)], top=1)
    assert read[0].logprob is None
    assert [token.logprob for token in read[3:]] == pytest.approx([token.logprob for token in written], abs=1e-4)


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.model"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_incomplete_folder_is_named(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    copy = shutil.copytree(folder / "onnx", tmp_path / "onnx")
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if name == "tokenizer.model":
        (copy / "tokenizer.json").unlink()  # says the same
    if damage == "cut":
        (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="run export again"):
        Engine(copy, model_id="small")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no model to serve: .* has no config\.json; point to"):
        Engine(tmp_path / "nowhere", model_id="small")


def test_another_models_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "onnx", tmp_path / "onnx")
    config = json.loads((copy / "config.json").read_text()) | {"vocab_size": 601}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="600 pieces, 601 embeddings"):
        Engine(copy, model_id="small")


@pytest.mark.parametrize("damage", ["operator", "input", "weights", "cycle", "version"])
def test_a_graph_that_onnxruntime_refuses_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder / "onnx", tmp_path / "onnx")
    model = onnx.load(copy / "model.onnx")
    node = model.graph.node[0]
    match damage:
        case "operator":
            node.op_type, node.domain = "Unheard", ""
        case "input":
            node.input[0] = "nowhere"
        case "weights":
            model.graph.initializer[0].raw_data = b"short"
        case "cycle":
            node.input[0] = model.graph.node[-1].output[0]
        case "version":
            model.ir_version = 10_000
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(ArtifactError, match=r"(?s)graph (can't be loaded|is not valid).*run export again"):
        Engine(copy, model_id="small")
