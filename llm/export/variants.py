"""Smaller graphs beside `model.onnx`, each under the name by which transformers.js and optimum find it.

    model_fp16.onnx        half precision, for accelerators; dtype fp16 of transformers.js
    model_int8.onnx        weights in blocks of 8 bits; dtype int8
    model_q4.onnx          weights in blocks of 4 bits, embedding and head in 8; dtype q4
    model_quantized.onnx   8-bit arithmetic, activations scaled at each call; dtype q8
    model_calibrated.onnx  8-bit arithmetic, activations scaled beforehand on text

bfloat16 is not among them: onnxruntime's CPU provider has no operators for it, so that what can't be run here would
leave here unproven.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from llm.errors import ArtifactError, DataError, DivergenceError
from llm.export.blockwise import blockwise
from llm.export.config import ExportConfig, Gate, Kind
from llm.export.parity.loaded import CachedGraph
from llm.export.quality import Logits, Quality, measure, through_cache, tokens_per_second
from llm.export.quantize import Inputs, calibrated, dynamic, fp16
from llm.serve.engine.session import graph_file
from llm.serve.models.graph import check_graph

MAKERS: Mapping[Kind, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "fp16": fp16,
    "int8": partial(blockwise, bits=8),
    "q4": partial(blockwise, bits=4),
    "quantized": dynamic,
}
EXTERNAL_DATA_BYTES = 1_500_000_000
CALIBRATION_ROWS = 16
PROMPT_TOKENS, WRITTEN_TOKENS = 16, 32  # when speed is measured


def write(
    folder: Path, kinds: Iterable[Kind], *, calibration: np.ndarray | None = None, external_data_bytes: int = EXTERNAL_DATA_BYTES
) -> dict[str, Path]:
    """Write variants of the `model.onnx` in a folder, and give back their paths; `calibration` is rows of token ids.

    Raises: ArtifactError if `calibrated` is asked for without rows.
    """
    model = onnx.load(folder / "model.onnx")
    paths: dict[str, Path] = {}
    for kind in kinds:
        graph = MAKERS[kind](model) if kind in MAKERS else calibrated(model, _samples(model, calibration))
        del graph.metadata_props[:]
        graph.metadata_props.extend(model.metadata_props)
        paths[kind] = folder / graph_file(kind)
        _save(graph, paths[kind], external_data_bytes)
    return paths


def _samples(model: onnx.ModelProto, rows_NT: np.ndarray | None) -> Iterator[Inputs]:
    """Every row as a graph's inputs, with an empty cache of the form that the graph declares.

    Raises: ArtifactError if there are no rows.
    """
    if rows_NT is None or not rows_NT.size:
        raise ArtifactError("no text to calibrate on", remedy="leave calibrated out of export.variants, or run tokenize again")
    axes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in model.graph.input}
    cache = {name: np.zeros((1, sizes[1], 0, sizes[3]), np.float32) for name, sizes in axes.items() if name.startswith("past_key_values")}
    for row_T in rows_NT:
        ids = row_T[None].astype(np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None], **cache}


def _save(graph: onnx.ModelProto, path: Path, external_data_bytes: int) -> None:
    """One file, or with large weights two: a graph ends at 2 GiB."""
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if weights >= external_data_bytes:
        onnx.save_model(graph, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024)
    else:
        onnx.save_model(graph, path)
    check_graph(path)


def export(reference: Logits, tokenized: Path, folder: Path, config: ExportConfig) -> tuple[dict[str, Any], dict[str, float]]:
    """Write the variants that the recipe asks for, and judge them: the facts of each, and tokens per second of every graph.

    `reference` is the trained model, so that each is compared with what it was made to be and not with another graph.
    Raises: DivergenceError if a variant misses its gate.
    """
    rows_NT = rows(tokenized, "test", config)
    calibration = rows(tokenized, "train", config)[:CALIBRATION_ROWS, :-1] if "calibrated" in config.variants else None
    paths = write(folder, config.variants, calibration=calibration, external_data_bytes=config.external_data_bytes)
    graphs = {kind: CachedGraph(path) for kind, path in paths.items()}
    found = measure(reference, {kind: through_cache(graph) for kind, graph in graphs.items()}, rows_NT)
    for kind in paths:
        check(kind, found[kind], getattr(config.gates, kind))
    facts: dict[str, Any] = {kind: {"file": path.name, "bytes": size(path), **asdict(found[kind])} for kind, path in paths.items()}
    every = {"fp32": CachedGraph(folder / "model.onnx"), **graphs}
    prompt_T = rows_NT[0, :PROMPT_TOKENS]
    return facts, {kind: tokens_per_second(graph, prompt_T, tokens=WRITTEN_TOKENS) for kind, graph in every.items()}


def rows(tokenized: Path, split: str, config: ExportConfig) -> np.ndarray:
    """Rows of a split, evenly spread over it, as long as training's and one token more: N, T.

    Raises: DataError if the split can't fill one.
    """
    facts = json.loads((tokenized / "rows.json").read_text(encoding="utf-8"))
    stream = np.memmap(tokenized / f"{split}.tokens", dtype=facts["dtype"], mode="r")
    length = min(facts["row_tokens"] + 1, len(stream))
    if length < 3:
        raise DataError(f"{split} split is too short to judge variants by", value=f"{len(stream)} tokens", remedy="raise dedup.test_share")
    count = max(1, min(config.variant_tokens, len(stream)) // length)
    starts = np.linspace(0, len(stream) - length, count).astype(int)
    return np.stack([stream[start : start + length] for start in starts]).astype(np.int64)


def check(kind: str, quality: Quality, gate: Gate, *, setting: str = "export.variants") -> None:
    """Raises: DivergenceError if a variant has lost more than its gate allows; not a number is always too much."""
    farthest = quality.max_logit_difference
    judged = [
        ("max_perplexity_increase", quality.perplexity_increase, quality.perplexity_increase <= gate.max_perplexity_increase),
        ("min_greedy_agreement", quality.greedy_agreement, quality.greedy_agreement >= gate.min_greedy_agreement),
        ("max_logit_difference", farthest, farthest <= (math.inf if gate.max_logit_difference is None else gate.max_logit_difference)),
    ]
    for name, found, holds in judged:
        if not holds:
            remedy = f"more than export.gates.{kind}.{name} {getattr(gate, name)} allows; change it, or leave {kind} out of {setting}"
            raise DivergenceError(f"variant {kind} misses its gate", value=f"{found:.4g}", remedy=remedy)


def size(graph: Path) -> int:
    """Bytes of a graph and of the weights beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
