"""The graph rewritten for serving gives the exported graph's logits, whatever else is in the slots."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from llm.errors import ArtifactError
from llm.export import quantize
from llm.export.blockwise import blockwise
from llm.export.parity.loaded import CachedGraph
from llm.serve.engine.rewrite import for_serving
from llm.serve.engine.session import open_session
from llm.serve.engine.slots import Slots
from llm.serve.models.folder import open_folder
from tests.serve.engine.conftest import LLAMA, write

TEXTS = [np.random.default_rng(seed).integers(6, 600, size) for seed, size in enumerate((40, 25, 33))]


@pytest.fixture(scope="module")
def slots(written: Any) -> Slots:
    folder = open_folder(written.folder)
    return Slots(open_session(folder, threads=1), folder, slots=4, capacity=64)


@pytest.fixture(scope="module")
def expected(written: Any) -> list[np.ndarray]:
    """Each text alone through the exported graph."""
    session = CachedGraph(written.folder / "model.onnx")
    return [session.run(text[None], session.empty_cache())[0][0] for text in TEXTS]


def test_prompts_read_in_pieces(slots: Slots, expected: list[np.ndarray]) -> None:
    for slot, (text, logits) in enumerate(zip(TEXTS, expected, strict=True)):
        pieces = [slots.read(slot, text[at : at + 7].tolist(), at, rows=np.arange(len(text[at : at + 7]))) for at in range(0, len(text), 7)]
        assert np.concatenate(pieces) == pytest.approx(logits, abs=1e-4)


def test_only_the_rows_that_are_asked_for(slots: Slots, expected: list[np.ndarray]) -> None:
    assert slots.read(3, TEXTS[0].tolist(), 0, rows=np.array([39, 2])) == pytest.approx(expected[0][[39, 2]], abs=1e-4)
    assert slots.read(3, TEXTS[0].tolist(), 0).shape == (0, 600)


def test_texts_of_different_lengths_are_written_together(slots: Slots, expected: list[np.ndarray]) -> None:
    lengths = np.array([12, 1, 20])
    for slot, text in enumerate(TEXTS):
        slots.read(slot, text[: lengths[slot]].tolist(), 0)
    for _ in range(5):
        logits = slots.decode(np.array([text[length] for text, length in zip(TEXTS, lengths, strict=True)]), lengths)
        for row, length in enumerate(lengths):
            assert logits[row] == pytest.approx(expected[row][length], abs=1e-4)
        lengths = lengths + 1


def test_slots_are_copied_exchanged_and_kept(slots: Slots, expected: list[np.ndarray]) -> None:
    for slot in (0, 1):
        slots.read(slot, TEXTS[slot][:20].tolist(), 0)
    kept = slots.keep(0, 20)
    slots.swap(0, 20, 1, 20)
    slots.copy(1, 2, 20)
    slots.restore(3, kept, 20)
    logits = slots.decode(np.array([TEXTS[text][20] for text in (1, 0, 0, 0)]), np.full(4, 20))
    for row, text in enumerate((1, 0, 0, 0)):
        assert logits[row] == pytest.approx(expected[text][20], abs=1e-4)


VARIANTS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "fp16": quantize.fp16,
    "int8": lambda model: blockwise(model, bits=8),
    "q4": lambda model: blockwise(model, bits=4),
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_variants_give_what_they_give_as_exported(written: Any, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(written.folder, tmp_path / "onnx")
    onnx.save(VARIANTS[kind](onnx.load(folder / "model.onnx")), folder / f"model_{kind}.onnx")
    facts, text = open_folder(folder), TEXTS[0]
    session = CachedGraph(folder / f"model_{kind}.onnx")
    expected = session.run(text[None], session.empty_cache())[0][0]
    slots = Slots(open_session(facts, f"model_{kind}.onnx", threads=1), facts, slots=2, capacity=64)
    rounding = 0.3 if kind == "fp16" else 0.1  # 8-bit activations round elsewhere when a sum is taken in another order
    assert slots.read(1, text.tolist(), 0, rows=np.arange(40)) == pytest.approx(expected, abs=rounding)
    assert slots.hidden(0, text.tolist(), 0).dtype == np.float32


def test_scales_over_the_whole_batch_are_refused(decoder: Any) -> None:
    with pytest.raises(ArtifactError, match="depend on each other.*serve the variant int8 or fp16"):
        for_serving(quantize.dynamic(onnx.load(decoder.folder / "model.onnx")), decoder.folder, positions=64)


@pytest.mark.parametrize(("head_dim", "left"), [(16, 0), (8, 4)])
def test_the_attention_rotates_where_it_can(tmp_path: Path, tokenizer_file: Path, head_dim: int, left: int) -> None:
    folder = write(LLAMA | {"head_dim": head_dim}, tmp_path, tokenizer_file).folder
    model = for_serving(onnx.load(folder / "model.onnx"), folder, positions=64)
    assert sum(node.op_type in ("Neg", "Cos") for node in model.graph.node) == left + bool(left)


@pytest.mark.parametrize(("external", "products"), [(False, 4), (True, 7)])
def test_products_of_the_same_states_are_one(tmp_path: Path, tokenizer_file: Path, external: bool, products: int) -> None:
    """Queries, keys and values are, and both of the feed-forward's; heads need not be cut apart for the attention."""
    folder = write(LLAMA | {"head_dim": 16, "tied_embeddings": False}, tmp_path, tokenizer_file).folder
    onnx.save(onnx.load(folder / "model.onnx"), tmp_path / "model.onnx", save_as_external_data=external, size_threshold=0)
    model = for_serving(onnx.load(tmp_path / "model.onnx", load_external_data=False), tmp_path, positions=64)
    count = Counter(node.op_type for node in model.graph.node)
    assert (count["MatMul"], count["Reshape"], count["Transpose"]) == (LLAMA["num_layers"] * products + 1, 0, 0)
    assert {each.name for each in model.graph.initializer} <= {name for node in model.graph.node for name in node.input}


@pytest.mark.parametrize("damage", ["operator", "shape"])
def test_attention_that_is_not_exports_is_named(decoder: Any, damage: str) -> None:
    model = onnx.load(decoder.folder / "model.onnx")
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    if damage == "operator":
        attention.op_type = "Unheard"
    else:
        del model.graph.value_info[:]
    with pytest.raises(ArtifactError, match="can't be served"):
        for_serving(model, decoder.folder, positions=64)
