"""Every family's folder in optimum, unchanged; optimum asks for an older transformers, so it runs in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.export.parity import causal, seq2seq
from llm.export.parity.loaded import CachedGraph, Seq2SeqGraphs
from tests.benchmarks.measured import TORCH, environment
from tests.export.conftest import LLAMA, MOE, PLAIN

pytestmark = pytest.mark.long
PROGRAM = Path(__file__).parent / "peers" / "opened_by_optimum.py"
ROWS = [[1, 40, 300, 5, 17, 260, 44, 91, 350, 12], [1, 33, 8]]


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("optimum", [TORCH, "optimum-onnx[onnxruntime]==0.1.0"])


def computed(python: Path, folder: Path, name: str) -> Any:
    answer = subprocess.run([python, PROGRAM, folder / "onnx", name], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


WRITERS = {"llama": LLAMA, "qwen3": LLAMA | {"qk_norm": True}, "gpt2": PLAIN | {"architecture": "gpt2"}, "moe": MOE}


@pytest.mark.parametrize("sizes", WRITERS.values(), ids=WRITERS)
def test_models_that_write(python: Path, exporting: Any, sizes: dict[str, Any]) -> None:
    """A batch padded on the left, decoded on the cache."""
    exported = exporting(sizes)
    graph = CachedGraph(exported.folder / "onnx" / "model.onnx")
    assert computed(python, exported.folder, "ORTModelForCausalLM") == [causal.greedy(graph, row, 12) for row in ROWS]


def test_encoders(python: Path, exporting: Any) -> None:
    exported = exporting(PLAIN | {"architecture": "encoder"}, 701)
    ids = torch.tensor(ROWS[:1])
    with torch.inference_mode():
        expected = {"ORTModelForFeatureExtraction": exported.model.encode(ids), "ORTModelForMaskedLM": exported.model(ids)}
    for name, values in expected.items():
        np.testing.assert_allclose(computed(python, exported.folder, name), values, atol=1e-4)


def test_encoder_decoders(python: Path, exporting: Any) -> None:
    """Its first pass gives a past of length 0, its later ones the encoder's keys and values of the first."""
    exported = exporting(PLAIN | {"architecture": "encoder_decoder", "num_decoder_layers": 3}, 710)
    graphs = Seq2SeqGraphs(exported.folder / "onnx")
    assert computed(python, exported.folder, "ORTModelForSeq2SeqLM") == [seq2seq.greedy(graphs, row, 12) for row in ROWS]
