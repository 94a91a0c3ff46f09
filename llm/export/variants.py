"""Smaller graphs beside each float32 graph, under the names by which transformers.js and optimum find them.

    model_fp16.onnx        half precision, for accelerators; dtype fp16 of transformers.js
    model_int8.onnx        weights in blocks of 8 bits; dtype int8
    model_q4.onnx          weights in blocks of 4 bits, embedding and head in 8; dtype q4
    model_quantized.onnx   8-bit arithmetic, activations scaled at each call; dtype q8
    model_calibrated.onnx  8-bit arithmetic, activations scaled beforehand on text

An encoder–decoder has two of each: encoder_model_int8.onnx and decoder_model_merged_int8.onnx.

bfloat16 is not among them: onnxruntime's CPU provider has no operators for it, so that what can't be run here would
leave here unproven.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from llm.errors import ArtifactError, DataError, DivergenceError
from llm.export.blockwise import blockwise
from llm.export.config import ExportConfig, Gate, Kind
from llm.export.exams import causal, encoder, seq2seq
from llm.export.exams.exam import Exam
from llm.export.quality import Quality, measure
from llm.export.quantize import Inputs, calibrated, dynamic, fp16
from llm.serve.engine.session import graph_file
from llm.serve.models.graph import check_graph

MAKERS: Mapping[Kind, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "fp16": fp16,
    "int8": partial(blockwise, bits=8),
    "q4": partial(blockwise, bits=4),
    "quantized": dynamic,
}
EXAMS: Mapping[str, Callable[[Any], Exam]] = {
    "decoder": causal.exam,
    "gpt2": causal.exam,
    "moe": causal.exam,
    "encoder": encoder.exam,
    "electra": encoder.exam,
    "encoder_decoder": seq2seq.exam,
}
EXTERNAL_DATA_BYTES = 1_500_000_000
CALIBRATION_ROWS = 16
ATTEMPTS = 3  # when speed is measured


def export(model: Any, tokenized: Path, folder: Path, config: ExportConfig) -> tuple[dict[str, Any], dict[str, float]]:
    """Write the variants that the recipe asks for, and judge them: the facts of each, and tokens per second of every kind of graph.

    Each is compared with the trained model, and so with what it was made to be and not with another graph. Facts are those of
    the first head, which is what the model is for; further heads stand among them by name.

    Raises: DivergenceError if a variant misses its gate.
    """
    exam, rows_NT = EXAMS[model.config.architecture](model), rows(tokenized, "test", config)
    calibration_NT = rows(tokenized, "train", config)[:CALIBRATION_ROWS] if "calibrated" in config.variants else rows_NT[:0]
    whole = exam.opened(folder, "")
    samples = exam.samples(whole, calibration_NT)
    for file, inputs in samples.items():
        write(folder / file, config.variants, samples=inputs, external_data_bytes=config.external_data_bytes)
    graphs: dict[str, Any] = {kind: exam.opened(folder, kind) for kind in config.variants}
    facts: dict[str, Any] = {kind: _files([folder / graph_file(kind, file) for file in samples]) for kind in config.variants}
    for head, found in judged(exam, graphs, rows_NT).items():
        for kind, quality in found.items():
            check(kind, quality, getattr(config.gates, kind), head=head)
            facts[kind] |= {head: asdict(quality)} if "perplexity" in facts[kind] else asdict(quality)
    every = {"fp32": whole, **graphs}
    return facts, {kind: max(exam.speed(graph, rows_NT[0]) for _ in range(ATTEMPTS)) for kind, graph in every.items()}


def write(
    path: Path, kinds: Iterable[Kind], *, samples: Sequence[Inputs] = (), external_data_bytes: int = EXTERNAL_DATA_BYTES
) -> dict[str, Path]:
    """Write variants of a float32 graph beside it, and give back their paths; `samples` are inputs to calibrate on.

    Raises: ArtifactError if `calibrated` is asked for without samples.
    """
    model = onnx.load(path)
    paths: dict[str, Path] = {}
    for kind in kinds:
        graph = MAKERS[kind](model) if kind in MAKERS else _calibrated(model, samples)
        del graph.metadata_props[:]
        graph.metadata_props.extend(model.metadata_props)
        paths[kind] = path.with_name(graph_file(kind, path.name))
        _save(graph, paths[kind], external_data_bytes)
    return paths


def _calibrated(model: onnx.ModelProto, samples: Sequence[Inputs]) -> onnx.ModelProto:
    if not samples:
        raise ArtifactError("no text to calibrate on", remedy="leave calibrated out of export.variants, or run tokenize again")
    return calibrated(model, samples)


def _save(graph: onnx.ModelProto, path: Path, external_data_bytes: int) -> None:
    """One file, or with large weights two: a graph ends at 2 GiB."""
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if weights >= external_data_bytes:
        onnx.save_model(graph, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024)
    else:
        onnx.save_model(graph, path)
    check_graph(path)


def judged(exam: Exam, graphs: Mapping[str, Any], rows_NT: np.ndarray) -> dict[str, dict[str, Quality]]:
    """The quality of opened graphs by head, then by the graph's name."""
    return {
        name: measure(head.reference, {kind: head.candidate(graph) for kind, graph in graphs.items()}, head.questions(rows_NT))
        for name, head in exam.heads.items()
    }


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


def check(kind: str, quality: Quality, gate: Gate, *, head: str = "tokens", setting: str = "export.variants") -> None:
    """Raises: DivergenceError if a variant has lost more by a head than its gate allows; not a number is always too much."""
    farthest = quality.max_logit_difference
    judged = [
        ("max_perplexity_increase", quality.perplexity_increase, quality.perplexity_increase <= gate.max_perplexity_increase),
        ("min_greedy_agreement", quality.greedy_agreement, quality.greedy_agreement >= gate.min_greedy_agreement),
        ("max_logit_difference", farthest, farthest <= (math.inf if gate.max_logit_difference is None else gate.max_logit_difference)),
    ]
    for name, found, holds in judged:
        if not holds:
            remedy = f"more than export.gates.{kind}.{name} {getattr(gate, name)} allows; change it, or leave {kind} out of {setting}"
            raise DivergenceError(f"variant {kind} misses its gate", value=f"{head} {found:.4g}", remedy=remedy)


def _files(graphs: list[Path]) -> dict[str, Any]:
    return {"file": ", ".join(path.name for path in graphs), "bytes": sum(map(size, graphs))}


def size(graph: Path) -> int:
    """Bytes of a graph and of the weights beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
