"""The graph: its interface, its bytes, its parity with PyTorch, and what other runtimes make of it."""

from __future__ import annotations

import hashlib
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
from llm.export.config import ExportConfig
from llm.export.graphs.causal import padded_causal_mask
from llm.export.graphs.trace import check
from llm.export.parity import causal, gate
from llm.export.parity.loaded import CachedGraph, Loaded
from llm.serve.models.folder import open_folder
from llm.serve.models.graph import check_graph
from tests.export.conftest import PROPERTIES, genai_continues

PROMPTS = [[1, 40, 300, 5, 17, 260, 44, 91, 350, 12], [1, 600, 601, 7], [1, 33]]


@pytest.fixture(scope="module")
def graph(exported: Any) -> onnx.ModelProto:
    return onnx.load(exported.folder / "onnx" / "model.onnx")


def axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_names_and_axes_are_those_that_others_expect(graph: onnx.ModelProto) -> None:
    inputs, outputs = ({value.name: axes(value) for value in values} for values in (graph.graph.input, graph.graph.output))
    row = ["batch_size", "sequence"]
    plain = {"input_ids": row, "attention_mask": ["batch_size", "past + sequence"], "position_ids": row}
    cached = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    past = {f"past_key_values.{name}": ["batch_size", 2, "past", 8] for name in cached}
    present = {f"present.{name}": ["batch_size", 2, "past + sequence", 8] for name in cached}
    assert list(inputs.items()) == list((plain | past).items())
    assert list(outputs.items()) == list(({"logits": [*row, 700]} | present | {"hidden": [*row, 32]}).items())


def test_the_hidden_state_is_what_the_head_reads(exported: Any) -> None:
    graph = Loaded(exported.folder / "onnx" / "model.onnx")
    ids = np.array([PROMPTS[0]])
    places = {"attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    found = graph({"input_ids": ids, **places, **graph.empty_cache()}, ["hidden"])["hidden"]
    with torch.inference_mode():
        expected = exported.model.features(torch.tensor(ids)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_graph_says_where_it_comes_from(exported: Any, graph: onnx.ModelProto) -> None:
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert {key: told[key] for key in PROPERTIES} == PROPERTIES
    tokenizer = exported.folder / "onnx" / "tokenizer.model"
    assert told["trainyard.tokenizer_sha256"] == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    assert set(json.loads(told["trainyard.versions"])) == {"trainyard", "torch", "onnx", "onnxscript"}


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
        "import sys; from pathlib import Path; from llm.model.weights import load; from llm.export.graphs.trace import write_graph;"
        "from llm.export.graphs.causal import graphs;"
        "from llm.export.config import ExportConfig as Config;"
        "write_graph(graphs(load(Path(sys.argv[1])))['model.onnx'], Path(sys.argv[2]), Config(external_data_bytes=0))"
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
    result = gate.check(exported.model, exported.folder / "onnx", PROMPTS, ExportConfig(greedy_tokens=32))
    assert result["max_logit_difference"] <= 1e-4


def damaged(exported: Any, folder: Path, scale: float) -> Path:
    """A copy whose last matrix is off by a factor."""
    shutil.copytree(exported.folder / "onnx", folder)
    graph = onnx.load(folder / "model.onnx")
    largest = [tensor for tensor in graph.graph.initializer if tensor.dims == [48, 32]][-1]
    values = onnx.numpy_helper.to_array(largest) * np.float32(scale)
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    onnx.save(graph, folder / "model.onnx")
    return folder


def test_a_damaged_graph_fails_the_gate(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"differs from PyTorch.*export.max_logit_difference 0.001"):
        gate.check(exported.model, damaged(exported, tmp_path / "a", 1.01), PROMPTS, ExportConfig())
    with pytest.raises(DivergenceError, match="differs from PyTorch"):
        gate.check(exported.model, damaged(exported, tmp_path / "b", float("nan")), PROMPTS, ExportConfig())


def test_other_greedy_tokens_fail_the_gate_and_so_does_nothing_but_doubt(exported: Any, tmp_path: Path) -> None:
    folder = damaged(exported, tmp_path / "a", 3.0)
    with pytest.raises(DivergenceError, match="greedy tokens differ"):
        causal.agreement(exported.model, folder, PROMPTS[:1], 64, doubt=0.0)
    with pytest.raises(DivergenceError, match="no greedy token could be compared"):
        causal.agreement(exported.model, folder, PROMPTS[:1], 64, doubt=1e9)


def test_genai_opens_the_folder_and_writes_the_same(exported: Any) -> None:
    model = onnxruntime_genai.Model(str(exported.folder / "onnx"))
    written = genai_continues(model, PROMPTS[0], max_length=60)
    assert written == causal.greedy(CachedGraph(exported.folder / "onnx" / "model.onnx"), PROMPTS[0], len(written))
    ends = {2, exported.tokenizer.end}
    assert len(written) == 50 or written[-1] in ends
    assert "hello world" in onnxruntime_genai.Tokenizer(model).decode(exported.tokenizer.encode("hello world"))


def test_large_weights_lie_beside_the_graph(exported: Any, written_elsewhere: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written_elsewhere, tmp_path / "onnx")
    assert (folder / "model.onnx").stat().st_size < (exported.folder / "onnx" / "model.onnx").stat().st_size
    (weights,) = set(folder.glob("model.onnx*")) - {folder / "model.onnx"}
    graph = CachedGraph(folder / "model.onnx")
    logits, _ = graph.run(np.array([PROMPTS[0]]), graph.empty_cache())
    np.testing.assert_allclose(logits[0], causal.reference(exported.model, PROMPTS[0]), atol=1e-4)
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
        check_graph(folder / "model.onnx")


def test_a_graph_with_operators_from_elsewhere_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Steal", ["x"], ["y"], domain="elsewhere")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "graph", [value], [out]),
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("elsewhere", 1)],
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="operator that is not served: Steal of elsewhere"):
        check(tmp_path / "model.onnx")
