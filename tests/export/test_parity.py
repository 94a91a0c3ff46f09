"""The gate on graphs that are broken on purpose: one mistake each, of the kinds that an export makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llm.errors import DivergenceError
from llm.export.config import ExportConfig
from llm.export.graphs import causal, encoder, seq2seq
from llm.export.graphs.trace import Graph, write_graph
from llm.export.parity import gate
from llm.export.parity.compare import agreed
from tests.export.conftest import LLAMA, MOE, PLAIN, a_model

PROMPTS = [[1, 40, 30, 5, 17, 26, 44, 91, 35, 12], [1, 60, 61, 7, 9], [1, 33, 8]]
SIZES: dict[str, dict[str, Any]] = {
    "decoder": LLAMA,
    "multi_head": LLAMA | {"num_kv_heads": LLAMA["num_heads"]},  # ONNX has no groups of one head
    "gpt2": PLAIN | {"architecture": "gpt2"},
    "moe": MOE,
    "encoder": PLAIN | {"architecture": "encoder"},
    "encoder_decoder": PLAIN | {"architecture": "encoder_decoder"},
}
KINDS: dict[str, Callable[..., dict[str, Graph]]] = {"encoder": encoder.graphs, "encoder_decoder": seq2seq.graphs}


class Fed(nn.Module):
    """A graph's module that is given something else than it was meant to be."""

    def __init__(self, module: nn.Module, change: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, *inputs: Any) -> Any:
        return self.module(*self.change(*inputs))


def positions_from_0(ids: Tensor, mask: Tensor, positions: Tensor, past: list[Tensor]) -> tuple[Any, ...]:
    return ids, mask, torch.arange(ids.shape[1])[None].expand_as(positions), past


def padding_is_seen(ids: Tensor, mask: Tensor, positions: Tensor, past: list[Tensor]) -> tuple[Any, ...]:
    return ids, torch.ones_like(mask), positions, past


def values_for_keys(ids: Tensor, mask: Tensor, positions: Tensor, past: list[Tensor]) -> tuple[Any, ...]:
    return ids, mask, positions, [past[place ^ 1] for place in range(len(past))]


def all_is_seen(ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[Any, ...]:
    return ids, torch.ones_like(mask), segments


def one_segment(ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[Any, ...]:
    return ids, mask, torch.zeros_like(segments)


def memory_in_full(ids: Tensor, memory: Tensor, mask: Tensor, past: list[Tensor]) -> tuple[Any, ...]:
    return ids, memory, torch.ones_like(mask), past


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of graphs as they should be."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SIZES}
    for name, folder in folders.items():
        for file, graph in graphs(name).items():
            write_graph(graph, folder / file, ExportConfig())
    return folders


def graphs(architecture: str) -> dict[str, Graph]:
    return KINDS.get(architecture, causal.graphs)(a_model(SIZES[architecture], 100))


@pytest.mark.parametrize("architecture", SIZES)
def test_a_sound_graph_passes(sound: dict[str, Path], architecture: str) -> None:
    found = gate.check(a_model(SIZES[architecture], 100), sound[architecture], PROMPTS, ExportConfig(greedy_tokens=8))
    assert found["max_logit_difference"] <= 1e-4


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("decoder", positions_from_0),
        ("decoder", padding_is_seen),
        ("decoder", values_for_keys),
        ("gpt2", positions_from_0),
        ("gpt2", padding_is_seen),
        ("encoder", all_is_seen),
        ("encoder", one_segment),
        ("encoder_decoder", memory_in_full),
    ],
)
def test_a_broken_graph_does_not(sound: dict[str, Path], tmp_path: Path, architecture: str, change: Callable[..., tuple[Any, ...]]) -> None:
    folder = shutil.copytree(sound[architecture], tmp_path / "broken")
    file, graph = list(graphs(architecture).items())[-1]
    shapes = (graph.shapes,)  # of `*inputs`
    write_graph(replace(graph, module=Fed(graph.module, change), shapes=shapes), folder / file, ExportConfig())
    with pytest.raises(DivergenceError, match="differs from PyTorch"):
        gate.check(a_model(SIZES[architecture], 100), folder, PROMPTS, ExportConfig())


@pytest.mark.parametrize(("side", "file"), [("encoder", "encoder_model.onnx"), ("decoder", "decoder_model_merged.onnx")])
def test_distances_off_by_one_do_not(sound: dict[str, Path], tmp_path: Path, side: str, file: str) -> None:
    folder, model = shutil.copytree(sound["encoder_decoder"], tmp_path / "broken"), a_model(SIZES["encoder_decoder"], 100)
    twin = a_model(SIZES["encoder_decoder"], 100)
    buckets = getattr(twin, f"{side}_positions").weight
    buckets.data = buckets.data.roll(1, dims=0)
    write_graph(seq2seq.graphs(twin)[file], folder / file, ExportConfig())
    with pytest.raises(DivergenceError, match="differs from PyTorch"):
        gate.check(model, folder, PROMPTS, ExportConfig())


def test_a_router_that_forgets_to_share_does_not_pass(tmp_path: Path) -> None:
    model = a_model(MOE, 100)
    graph = causal.graphs(model)["model.onnx"]
    for block in graph.module.model.blocks:  # type: ignore[union-attr]
        block.feed_forward.config = block.feed_forward.config.model_copy(update={"normalised_shares": False})
    write_graph(graph, tmp_path / "model.onnx", ExportConfig())
    with pytest.raises(DivergenceError, match="differs from PyTorch"):
        gate.check(model, tmp_path, PROMPTS, ExportConfig())


def test_what_follows_a_tie_is_compared(tmp_path: Path) -> None:
    model = a_model(LLAMA | {"tied_embeddings": False}, 100)
    prompt = PROMPTS[0]
    with torch.inference_mode():
        best = int(model(torch.tensor([prompt]))[0][0, -1].argmax())
        model.head.weight[(best + 1) % 100] = model.head.weight[best]
        first, second = model(torch.tensor([prompt]))[0][0, -1].topk(2).values
    assert first == second
    write_graph(causal.graphs(model)["model.onnx"], tmp_path / "model.onnx", ExportConfig())
    found = gate.check(model, tmp_path, [prompt], ExportConfig(greedy_tokens=16))
    assert found["greedy_ties"] >= 1
    assert found["greedy_tokens_compared"] >= 8
    assert found["greedy_ties"] + found["greedy_tokens_compared"] == 16


def test_a_mistake_after_a_tie_is_found() -> None:
    logits = np.array([[3.0, 3.0, 0.0], [0.0, 9.0, 1.0]])
    assert agreed([([0, 1], logits), ([1, 1], logits)], 1e-3) == {"greedy_tokens_compared": 2, "greedy_ties": 2}
    with pytest.raises(DivergenceError, match="token 1 is 2, PyTorch says 1"):
        agreed([([0, 2], logits)], 1e-3)


def test_nothing_but_ties_does_not_pass(tmp_path: Path) -> None:
    model = a_model(LLAMA | {"tied_embeddings": False}, 100)
    torch.nn.init.zeros_(model.head.weight)
    write_graph(causal.graphs(model)["model.onnx"], tmp_path / "model.onnx", ExportConfig())
    with pytest.raises(DivergenceError, match="no greedy token could be compared"):
        gate.check(model, tmp_path, PROMPTS, ExportConfig(greedy_tokens=4))
