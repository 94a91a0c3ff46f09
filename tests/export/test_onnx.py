"""The graph: its interface, its bytes, its parity with PyTorch, and what other runtimes make of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai
import pytest
import torch

from llm.errors import ArtifactError, DivergenceError
from llm.export import parity
from llm.export.config import ExportConfig
from llm.export.onnx import padded_causal_mask
from llm.serve.engine.session import Session
from llm.serve.models.folder import check_external_data, open_folder

PROMPTS = [[1, 40, 300, 5, 17, 260, 44, 91, 350, 12], [1, 600, 601, 7], [1, 33]]


@pytest.fixture(scope="module")
def graph(exported: Any) -> onnx.ModelProto:
    return onnx.load(exported.folder / "onnx" / "model.onnx")


def axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_names_and_axes_are_those_that_others_expect(graph: onnx.ModelProto) -> None:
    inputs, outputs = ({value.name: axes(value) for value in values} for values in (graph.graph.input, graph.graph.output))
    cache = {f"past_key_values.{layer}.{kind}": ["batch", 2, "past", 8] for layer in (0, 1) for kind in ("key", "value")}
    plain = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "past + sequence"], "position_ids": ["batch", "sequence"]}
    present = {f"present.{layer}.{kind}": ["batch", 2, "past + sequence", 8] for layer in (0, 1) for kind in ("key", "value")}
    assert list(inputs.items()) == list((plain | cache).items())
    assert list(outputs.items()) == list(({"logits": ["batch", "sequence", 700]} | present).items())


def test_the_graph_tells_nothing_of_where_it_was_made(exported: Any) -> None:
    content = (exported.folder / "onnx" / "model.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


@pytest.fixture(scope="module")
def written_elsewhere(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same export by another process, with its weights beside the graph."""
    folder = tmp_path_factory.mktemp("elsewhere") / "onnx"
    shutil.copytree(exported.folder / "onnx", folder)
    code = (
        "import sys; from pathlib import Path; from llm.model.weights import load; from llm.export.onnx import write_graph;"
        "from llm.export.config import ExportConfig as Config;"
        "write_graph(load(Path(sys.argv[1])), Path(sys.argv[2]), Config(external_data_bytes=0))"
    )
    subprocess.run([sys.executable, "-c", code, exported.trained, folder / "model.onnx"], check=True, capture_output=True)
    return folder


def test_another_process_writes_the_same_graph(graph: onnx.ModelProto, written_elsewhere: Path) -> None:
    other = onnx.load(written_elsewhere / "model.onnx")
    assert [node.SerializeToString(deterministic=True) for node in other.graph.node] == [
        node.SerializeToString(deterministic=True) for node in graph.graph.node
    ]
    assert [(tensor.name, onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in other.graph.initializer] == [
        (tensor.name, onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in graph.graph.initializer
    ]


def test_padding_is_invisible_and_sees_only_itself() -> None:
    mask = padded_causal_mask(torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), sequence=3)[:, 0].int().tolist()
    assert mask[0] == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert mask[1] == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert padded_causal_mask(torch.tensor([[0, 0, 1]]), sequence=3)[0, 0].any(dim=1).all(), "a softmax over nothing is not a number"


def test_the_stage_reports_parity(exported: Any) -> None:
    assert json.loads((exported.folder / "parity.json").read_text()) == exported.result
    assert exported.result["max_logit_difference"] <= 1e-4
    assert exported.result["greedy_tokens_equal"] is True
    assert exported.result["greedy_tokens_compared"] >= 300


def test_the_graph_agrees_with_plain_pytorch(exported: Any) -> None:
    result = parity.check(exported.model, Session(open_folder(exported.folder)), PROMPTS, ExportConfig(greedy_tokens=32))
    assert result["max_logit_difference"] <= 1e-4


def damaged(exported: Any, folder: Path, scale: float) -> Session:
    """A copy whose last matrix is off by a factor."""
    shutil.copytree(exported.folder / "onnx", folder)
    graph = onnx.load(folder / "model.onnx")
    largest = [tensor for tensor in graph.graph.initializer if tensor.dims == [48, 32]][-1]
    values = onnx.numpy_helper.to_array(largest) * np.float32(scale)
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    onnx.save(graph, folder / "model.onnx")
    return Session(open_folder(folder))


def test_a_damaged_graph_fails_the_gate(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"differs from PyTorch.*export.max_logit_difference 0.001"):
        parity.check(exported.model, damaged(exported, tmp_path / "a", 1.01), PROMPTS, ExportConfig())
    with pytest.raises(DivergenceError, match="differs from PyTorch"):
        parity.check(exported.model, damaged(exported, tmp_path / "b", float("nan")), PROMPTS, ExportConfig())


def test_other_greedy_tokens_fail_the_gate_unless_pytorch_is_in_doubt(exported: Any, tmp_path: Path) -> None:
    session = damaged(exported, tmp_path / "a", 3.0)
    with pytest.raises(DivergenceError, match="greedy tokens differ"):
        parity.greedy_agreement(exported.model, session, PROMPTS[0], 64, doubt=0.0)
    assert parity.greedy_agreement(exported.model, session, PROMPTS[0], 64, doubt=1e9) == 0


def test_genai_opens_the_folder_and_writes_the_same(exported: Any) -> None:
    model = onnxruntime_genai.Model(str(exported.folder / "onnx"))
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=60)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(PROMPTS[0])
    while not generator.is_done():
        generator.generate_next_token()
    written = [int(id) for id in generator.get_sequence(0)][len(PROMPTS[0]) :]
    session = Session(open_folder(exported.folder))
    assert written == parity.greedy(session, PROMPTS[0], len(written))
    ends = {2, exported.tokenizer.end}
    assert len(written) == 50 or written[-1] in ends
    assert "hello world" in onnxruntime_genai.Tokenizer(model).decode(exported.tokenizer.encode("hello world"))


def test_large_weights_lie_beside_the_graph(exported: Any, written_elsewhere: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written_elsewhere, tmp_path / "onnx")
    assert (folder / "model.onnx").stat().st_size < (exported.folder / "onnx" / "model.onnx").stat().st_size
    (weights,) = set(folder.glob("model.onnx*")) - {folder / "model.onnx"}
    session = Session(open_folder(folder))
    logits, _ = session.run(np.array([PROMPTS[0]]), session.empty_cache())
    np.testing.assert_allclose(logits[0], parity.reference(exported.model, PROMPTS[0]), atol=1e-4)
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="weights are missing"):
        open_folder(folder)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
def test_weights_from_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    """Hidden in the branch of an `If`, where a look at the initialisers alone would miss it."""
    (tmp_path / "secret").write_bytes(bytes(4))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    stolen = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    stolen.external_data.add(key="location", value=location)
    output = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1])
    branch = onnx.helper.make_graph([], "branch", [], [output], initializer=[stolen])
    choose = onnx.helper.make_node("If", ["condition"], ["out"], then_branch=branch, else_branch=branch)
    condition = onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, [])
    graph = onnx.helper.make_graph([choose], "graph", [condition], [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])])
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ArtifactError, match="outside its folder"):
        check_external_data(folder / "model.onnx")
