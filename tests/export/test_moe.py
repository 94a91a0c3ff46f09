"""A mixture of experts: the traced experts, the graph, and the classes of transformers that compute the same."""

from __future__ import annotations

import json
from typing import Any

import onnx
import onnxruntime_genai
import pytest
import torch
import transformers

from llm.errors import RecipeError
from llm.export import huggingface
from llm.export.graphs.experts import TracedExperts, traceable
from llm.export.parity import causal
from llm.export.parity.loaded import CachedGraph
from llm.model import origin
from llm.model.moe import experts_of
from tests.export.conftest import MOE, a_model, genai_continues

PROMPT = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12]
OF_ITS_OWN = {"router": "sigmoid", "balance": "bias", "num_shared_experts": 1, "qk_norm": True}


@pytest.fixture(scope="module")
def mixtral(exporting: Any) -> Any:
    return exporting(MOE)


@pytest.fixture(scope="module")
def unknown(exporting: Any) -> Any:
    """Sigmoid router, selection bias and a shared expert: what no class of transformers that we write has."""
    return exporting(MOE | OF_ITS_OWN)


@pytest.mark.parametrize("changes", [{}, OF_ITS_OWN, {"normalised_shares": False, "experts_per_token": 3}, {"experts_per_token": 4}])
def test_traced_experts_answer_as_sorted_ones(changes: dict[str, Any]) -> None:
    model = a_model(MOE | changes)
    sorted_ones = next(iter(experts_of(model)))
    with torch.inference_mode():
        for shape in ((3, 17, 32), (1, 1, 32)):
            x_BTD = torch.randn(shape, generator=torch.Generator().manual_seed(2))
            torch.testing.assert_close(TracedExperts(sorted_ones)(x_BTD), sorted_ones(x_BTD), atol=1e-5, rtol=0)


def test_tracing_leaves_the_model_as_it_is_and_copies_no_weights() -> None:
    model = a_model(MOE)
    twin = traceable(model)
    assert len(list(experts_of(model))) == 2
    assert not list(experts_of(twin))
    assert twin.blocks[0].feed_forward.gates[1].weight.data_ptr() == model.blocks[0].feed_forward.gate[1].data_ptr()


@pytest.mark.parametrize("fixture", ["mixtral", "unknown"])
def test_the_graph_agrees_with_pytorch(fixture: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(fixture).result
    assert result["max_logit_difference"] <= 1e-4
    assert result["greedy_tokens_compared"] >= 40


def test_experts_are_matrices_that_quantisers_find(mixtral: Any) -> None:
    graph = onnx.load(mixtral.folder / "onnx" / "model.onnx").graph
    weights = {tensor.name for tensor in graph.initializer}
    constant = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    assert len(constant) >= 2 * (4 + 3 * 4), "attention and three matrices of each expert, in both layers"


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({}, "MixtralForCausalLM"),
        ({"qk_norm": True}, "Qwen3MoeForCausalLM"),
        ({"qk_norm": True, "normalised_shares": False, "head_dim": 12}, "Qwen3MoeForCausalLM"),
    ],
)
def test_transformers_routes_alike(exported: Any, tmp_path: Any, changes: dict[str, Any], architecture: str) -> None:
    model = a_model(MOE | changes)
    huggingface.write(model, exported.tokenized / "tokenizer.model", tmp_path, card={"name": "x"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == architecture
    ids = torch.randint(0, 700, (3, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(origin.load(tmp_path)(ids)[0], model(ids)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"router": "sigmoid"}, "model.router sigmoid"),
        ({"balance": "bias"}, "model.selection_bias True"),
        ({"num_shared_experts": 1}, "model.num_shared_experts 1"),
        ({"attention_bias": True}, "model.attention_bias True"),
        ({"normalised_shares": False}, "model.qk_norm False"),
    ],
)
def test_what_transformers_computes_otherwise_is_refused(exported: Any, tmp_path: Any, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=f"no class of transformers computes this model: .*{named}"):
        huggingface.write(a_model(MOE | changes), exported.tokenized / "tokenizer.model", tmp_path, card={"name": "x"})
    assert not list(tmp_path.iterdir())


def test_without_a_class_there_is_a_graph_and_the_card_says_why(unknown: Any) -> None:
    assert unknown.result["huggingface"] is False
    assert not (unknown.folder / "huggingface").exists()
    assert "no class of transformers computes this model: model.num_shared_experts 1" in (unknown.folder / "onnx" / "README.md").read_text()
    back = origin.load(unknown.folder / "weights")
    assert all(torch.equal(ours, back.state_dict()[name]) for name, ours in unknown.model.state_dict().items())


def test_genai_opens_the_folder_and_writes_the_same(unknown: Any) -> None:
    written = genai_continues(onnxruntime_genai.Model(str(unknown.folder / "onnx")), PROMPT, max_length=40)
    assert written == causal.greedy(CachedGraph(unknown.folder / "onnx" / "model.onnx"), PROMPT, len(written))
    assert json.loads((unknown.folder / "onnx" / "config.json").read_text())["model_type"] == "qwen3_moe"
