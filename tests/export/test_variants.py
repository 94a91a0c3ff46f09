"""Variants of a graph: what is written, what it loses, and what its gate says; the tools' own code is the reference."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi import _pybind_state as native
from onnxruntime.transformers.float16 import convert_float_to_float16

from llm.errors import ArtifactError, DivergenceError
from llm.export import variants
from llm.export.blockwise import Blocks, blockwise, in_blocks
from llm.export.config import ExportConfig, Gate, Gates, Kind
from llm.export.exams.causal import samples, through_cache
from llm.export.graphs.causal import graphs
from llm.export.graphs.trace import write_graph
from llm.export.onnx import write as write_folder
from llm.export.parity import causal
from llm.export.parity.loaded import CachedGraph
from llm.export.quality import Quality, loss, measure, next_tokens
from llm.export.quantize import fp16
from llm.model.config import Gpt2Config, MoeConfig
from llm.model.decoder import Decoder
from llm.model.families import build
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Sampling

KINDS: tuple[Kind, ...] = get_args(Kind)


def reference(exported: Any) -> Any:
    return lambda ids_T: causal.reference(exported.model, ids_T.tolist())


@pytest.fixture(scope="module")
def rows(exported: Any) -> np.ndarray:
    return variants.rows(exported.tokenized, "test", ExportConfig(variant_tokens=1_000))


def on(folder: Path, rows: np.ndarray) -> list[Any]:
    """The rows as inputs to calibrate a folder's graph on."""
    return samples(CachedGraph(folder / "model.onnx"), rows)["model.onnx"]


@pytest.fixture(scope="module")
def written(exported: Any, rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An onnx folder with every variant."""
    folder = shutil.copytree(exported.folder / "onnx", tmp_path_factory.mktemp("variants") / "onnx")
    paths = variants.write(folder / "model.onnx", KINDS, samples=on(folder, rows))
    assert {kind: path.name for kind, path in paths.items()} == {kind: f"model_{kind}.onnx" for kind in KINDS}
    return folder


@pytest.fixture(scope="module")
def qualities(exported: Any, written: Path, rows: np.ndarray) -> dict[str, Quality]:
    sessions = {kind: through_cache(CachedGraph(written / f"model_{kind}.onnx")) for kind in KINDS}
    return measure(reference(exported), sessions, next_tokens(rows))


def spread(blocks: Blocks, columns: int, *, bits: int) -> np.ndarray:
    """The weights that blocks stand for, computed one by one."""
    N = len(blocks.scales)

    def code(packed: np.ndarray, index: int) -> int:
        return int(packed[index]) if bits == 8 else int(packed[index // 2]) >> 4 * (index % 2) & 15

    weights = [
        [
            float(blocks.scales[n, k // 32]) * (code(blocks.codes[n, k // 32], k % 32) - code(blocks.zeros[n], k // 32))
            for k in range(columns)
        ]
        for n in range(N)
    ]
    return np.array(weights)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 48, 96])
def test_blocks_hold_what_onnxruntime_would_hold(bits: int, columns: int) -> None:
    weights_NK = np.random.default_rng(0).normal(size=(5, columns)).astype(np.float32)
    weights_NK[2] = 0.0
    found = spread(in_blocks(weights_NK, bits=bits), columns, bits=bits)
    groups = -(-columns // 32)
    codes, scales = np.zeros((5, groups, 32 * bits // 8), np.uint8), np.zeros((5, groups), np.float32)
    zeros = np.zeros((5, -(-groups * bits // 8)), np.uint8)
    pack = native.quantize_matmul_8bits if bits == 8 else native.quantize_matmul_4bits
    padded = np.ascontiguousarray(np.pad(weights_NK.T, ((0, 32 * groups - columns), (0, 0))))
    pack(codes, padded, scales, zeros, 32, 5, columns, False)
    theirs = spread(Blocks(codes, scales, zeros), columns, bits=bits)
    step = (weights_NK.max() - weights_NK.min()) / (2**bits - 1)
    assert np.abs(found - weights_NK).max() <= np.abs(theirs - weights_NK).max() + 1e-6 <= step
    np.testing.assert_allclose(found, theirs, atol=step * 0.51)
    assert found[2].tolist() == [0.0] * columns


def test_every_variant_is_smaller_and_stays_near_the_model(written: Path, qualities: dict[str, Quality]) -> None:
    sizes = {kind: variants.size(written / f"model_{kind}.onnx") for kind in KINDS}
    assert sizes["q4"] < sizes["int8"] < sizes["fp16"] < variants.size(written / "model.onnx")
    assert all(abs(quality.perplexity_increase) < 0.08 for quality in qualities.values())
    agreement = {kind: quality.greedy_agreement for kind, quality in qualities.items()}
    assert agreement["fp16"] > 0.99 >= agreement["int8"] > 0.9 > agreement["q4"] > 0.4, "random weights: the two best are often close"
    assert min(agreement["quantized"], agreement["calibrated"]) > 0.6
    assert qualities["fp16"].max_logit_difference < 0.1
    assert qualities["int8"].max_logit_difference < qualities["q4"].max_logit_difference


def test_the_figures_are_those_of_a_plain_computation(exported: Any, written: Path, rows: np.ndarray) -> None:
    session = CachedGraph(written / "model_q4.onnx")
    expected = np.stack([causal.reference(exported.model, row[:-1].tolist()) for row in rows]).astype(np.float64)
    found = np.stack([session.run(row[None, :-1], session.empty_cache())[0][0] for row in rows]).astype(np.float64)
    nats = [
        -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[
            np.arange(len(rows))[:, None], np.arange(rows.shape[1] - 1), rows[:, 1:]
        ].mean()
        for logits in (expected, found)
    ]
    quality = measure(reference(exported), {"q4": through_cache(session)}, next_tokens(rows))["q4"]
    assert quality.perplexity == pytest.approx(np.exp(nats[1]), rel=2e-3)
    assert quality.perplexity_increase == pytest.approx(np.exp(nats[1] - nats[0]) - 1, abs=2e-3)
    assert quality.greedy_agreement == pytest.approx((expected.argmax(-1) == found.argmax(-1)).mean(), abs=0.01)
    same = measure(reference(exported), {"same": reference(exported)}, next_tokens(rows))["same"]
    assert (same.perplexity_increase, same.greedy_agreement, same.max_logit_difference) == (0.0, 1.0, 0.0)
    assert loss(np.array([[0.0, np.nan]]), np.array([0])) != 0.0


SIZES = {"width": 64, "num_layers": 1, "num_heads": 4, "max_positions": 128}


@pytest.mark.parametrize(
    "config",
    [
        Gpt2Config(**SIZES, ffn_width=128),
        MoeConfig(**SIZES, num_kv_heads=2, ffn_width=64, num_experts=3, experts_per_token=2),
    ],
    ids=lambda config: config.architecture,
)
def test_other_writers_have_the_same_variants(exported: Any, rows: np.ndarray, tmp_path: Path, config: Gpt2Config | MoeConfig) -> None:
    torch.manual_seed(0)
    model = build(config, 700).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    write_folder(model, exported.tokenized / "tokenizer.model", tmp_path, ExportConfig())
    paths = variants.write(tmp_path / "model.onnx", KINDS, samples=on(tmp_path, rows[:4]))
    sessions = {kind: through_cache(CachedGraph(path)) for kind, path in paths.items()}
    for kind, quality in measure(lambda ids_T: causal.reference(model, ids_T.tolist()), sessions, next_tokens(rows[:4])).items():
        assert variants.size(paths[kind]) < 0.9 * variants.size(tmp_path / "model.onnx"), kind
        assert quality.greedy_agreement > 0.4, kind
        assert abs(quality.perplexity_increase) < 0.05, kind


def test_the_engine_refuses_activations_that_are_scaled_over_a_batch(written: Path) -> None:
    with pytest.raises(ArtifactError, match=r"depend on each other.*serve the variant int8 or fp16; quantized is for transformers\.js"):
        Engine(written, model_id="sample", config=EngineConfig(variant="quantized", threads=1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "quantized"])
def test_the_engine_serves_a_variant(written: Path, kind: Kind) -> None:
    """With the graph rewritten for its own cache, it writes what the variant writes as it is."""
    prompt = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12]
    engine = Engine(written, model_id="sample", config=EngineConfig(variant=kind, threads=1))
    try:
        chunks = list(engine.submit(prompt, Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)))
    finally:
        engine.close()
    tokens = [scored.id for chunk in chunks for scored in chunk.tokens]
    assert tokens == causal.greedy(CachedGraph(written / f"model_{kind}.onnx"), prompt, 16)


def test_interfaces_are_the_float32_graphs(written: Path) -> None:
    def interface(path: Path) -> list[tuple[str, list[str | int]]]:
        graph = onnx.load(path).graph
        values = (*graph.input, *graph.output)
        return [(value.name, [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]) for value in values]

    for kind in KINDS:
        assert interface(written / f"model_{kind}.onnx") == interface(written / "model.onnx"), kind
    types = {value.name: value.type.tensor_type.elem_type for value in onnx.load(written / "model_fp16.onnx").graph.output}
    assert types.pop("logits") == onnx.TensorProto.FLOAT
    assert set(types.values()) == {onnx.TensorProto.FLOAT16}


def test_a_tied_table_is_stored_once_and_an_untied_one_twice(written: Path, exported: Any, tmp_path: Path) -> None:
    def tables(path: Path) -> int:
        return sum(
            700 in tensor.dims and tensor.data_type == onnx.TensorProto.UINT8 and len(tensor.dims) == 3
            for tensor in onnx.load(path).graph.initializer
        )

    assert tables(written / "model_q4.onnx") == 1
    untied = Decoder(exported.model.config.model_copy(update={"tied_embeddings": False}), 700).eval()
    write_graph(graphs(untied)["model.onnx"], tmp_path / "model.onnx", ExportConfig())
    variants.write(tmp_path / "model.onnx", ["q4"])
    assert tables(tmp_path / "model_q4.onnx") == 2


def test_distant_positions_are_told_apart_in_half_precision(exported: Any, written: Path, tmp_path: Path) -> None:
    """onnxruntime's converter rounds positions to halves; at 40,000 their step is 32."""
    model = onnx.load(written / "model.onnx")
    onnx.save(fp16(model), tmp_path / "ours.onnx")
    onnx.save(convert_float_to_float16(model, keep_io_types=["logits"]), tmp_path / "theirs.onnx")
    feeds = {"input_ids": np.array([[5, 9, 30, 7]]), "attention_mask": np.ones((1, 4), np.int64)}
    feeds |= {f"past_key_values.{layer}.{kind}": np.zeros((1, 2, 0, 8)) for layer in (0, 1) for kind in ("key", "value")}

    def logits(path: Path, positions: list[int], kind: Any) -> np.ndarray:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = {name: value.astype(kind) if value.dtype == np.float64 else value for name, value in feeds.items()}
        return np.asarray(session.run(["logits"], given | {"position_ids": np.array([positions])})[0])

    far = [40_000, 40_001, 40_002, 40_003]
    expected = logits(written / "model.onnx", far, np.float32)
    assert np.abs(logits(tmp_path / "ours.onnx", far, np.float16) - expected).max() < 0.1
    assert np.abs(logits(tmp_path / "theirs.onnx", far, np.float16) - expected).max() > 0.5


def test_the_same_graph_gives_the_same_bytes_and_logging_is_left_alone(
    exported: Any, rows: np.ndarray, written: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported.folder / "onnx", tmp_path / "again")
    before = list(logging.getLogger().handlers), logging.root.manager.disable
    variants.write(folder / "model.onnx", KINDS, samples=on(folder, rows))
    assert (list(logging.getLogger().handlers), logging.root.manager.disable) == before
    for kind in KINDS:
        assert (folder / f"model_{kind}.onnx").read_bytes() == (written / f"model_{kind}.onnx").read_bytes(), kind


def test_large_weights_lie_beside_the_variant_and_are_counted(exported: Any, written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder / "onnx", tmp_path / "onnx")
    variants.write(folder / "model.onnx", ["int8"], external_data_bytes=0)
    assert (folder / "model_int8.onnx_data").is_file()
    assert variants.size(folder / "model_int8.onnx") > (folder / "model_int8.onnx").stat().st_size
    ours, theirs = (CachedGraph(each / "model_int8.onnx") for each in (folder, written))
    ids = np.array([[1, 40, 300, 5]])
    assert np.array_equal(ours.run(ids, ours.empty_cache())[0], theirs.run(ids, theirs.empty_cache())[0])


def test_metadata_travels_along(exported: Any, tmp_path: Path) -> None:
    model = onnx.load(exported.folder / "onnx" / "model.onnx")
    onnx.helper.set_model_props(model, {"licence": "apache-2.0"})
    onnx.save(model, tmp_path / "model.onnx")
    for path in variants.write(tmp_path / "model.onnx", ["fp16", "q4", "quantized"]).values():
        assert {each.key: each.value for each in onnx.load(path).metadata_props} == {"licence": "apache-2.0"}


def judged(exported: Any, folder: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, float]]:
    copy = shutil.copytree(exported.folder / "onnx", folder / "onnx")
    return variants.export(exported.model, exported.tokenized, copy, ExportConfig(variant_tokens=300, **settings))


def test_the_facts_of_a_variant_and_the_speed_of_every_graph(exported: Any, tmp_path: Path) -> None:
    facts, speeds = judged(exported, tmp_path, variants=("int8",))
    assert set(facts) == {"int8"}
    assert facts["int8"]["file"] == "model_int8.onnx"
    assert facts["int8"]["bytes"] == (tmp_path / "onnx" / "model_int8.onnx").stat().st_size
    assert set(speeds) == {"fp32", "int8"}
    assert min(speeds.values()) > 0
    json.dumps(facts, allow_nan=False)


def test_a_variant_that_loses_too_much_fails_the_stage(exported: Any, tmp_path: Path) -> None:
    strict = Gates(q4=Gate(max_perplexity_increase=1e-9, min_greedy_agreement=1.0))
    with pytest.raises(DivergenceError, match=r"variant q4 misses its gate.*export\.gates\.q4\..*leave q4 out of export\.variants"):
        judged(exported, tmp_path / "a", variants=("q4",), gates=strict)


@pytest.mark.parametrize(
    ("worse", "setting"),
    [
        ({"perplexity_increase": 0.2}, "max_perplexity_increase"),
        ({"perplexity_increase": float("nan")}, "max_perplexity_increase"),
        ({"greedy_agreement": 0.5}, "min_greedy_agreement"),
        ({"max_logit_difference": 2.0}, "max_logit_difference"),
        ({"max_logit_difference": float("nan")}, "max_logit_difference"),
    ],
)
def test_each_limit_is_named(worse: dict[str, float], setting: str) -> None:
    good = {"perplexity": 9.0, "perplexity_increase": 0.0, "greedy_agreement": 1.0, "max_logit_difference": 0.0}
    gate = Gate(max_perplexity_increase=0.1, min_greedy_agreement=0.9, max_logit_difference=1.0)
    variants.check("fp16", Quality(**good), gate)
    with pytest.raises(DivergenceError, match=rf"export\.gates\.fp16\.{setting} "):
        variants.check("fp16", Quality(**(good | worse)), gate)


def test_calibration_needs_text(exported: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder / "onnx", tmp_path / "onnx")
    with pytest.raises(ArtifactError, match="leave calibrated out of export.variants"):
        variants.write(folder / "model.onnx", ["calibrated"])


def test_blockwise_leaves_nothing_unread(exported: Any) -> None:
    graph = blockwise(onnx.load(exported.folder / "onnx" / "model.onnx"), bits=4).graph
    read = {name for node in graph.node for name in node.input}
    assert [tensor.name for tensor in graph.initializer if tensor.name not in read] == []
    assert not [node.name for node in graph.node if node.op_type in ("MatMul", "Gather")]
