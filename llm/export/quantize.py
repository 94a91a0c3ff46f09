"""A float32 graph in half precision, or with the arithmetic of its matrices in 8 bits.

Every function takes a whole graph with its weights and gives back another with the same inputs and outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

WHOLE = {"ScatterND": (0, 2)}  # operators that onnxruntime's CPU provider has in float32 only, and where their numbers come in
LOGITS = {"logits", "seq_relationship_logits"}
Inputs = Mapping[str, np.ndarray]


def fp16(model: ModelProto) -> ModelProto:
    """Weights, arithmetic and cache in half precision; logits stay float32, as samplers expect them.

    The angles of rotary positions stay float32 too, and so do the distances that T5 rounds to buckets: above 2,048 half
    precision has no odd numbers, so neighbouring positions would be turned alike, and a logarithm at the border of two
    buckets would fall into the wrong one. onnxruntime's own converter casts between any two nodes that it leaves alone,
    and so rounds the angles.
    """
    half = ModelProto()
    half.CopyFrom(model)
    graph, exact = half.graph, _positions(model)
    read_by = {name for index, node in enumerate(graph.node) if index not in exact for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in read_by:
            _halve(tensor)
    for index, node in enumerate(graph.node):
        if index not in exact:
            _halve_attributes(node)
    kept = LOGITS | {name for index in exact for name in (*graph.node[index].input, *graph.node[index].output)} - read_by
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in kept:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(each for node in nodes for each in _with_casts(node))
    return half


def _positions(model: ModelProto) -> set[int]:
    """The places of sines, cosines, numbers that become whole ones, and all nodes that these are computed by."""
    makers = {output: index for index, node in enumerate(model.graph.node) for output in node.output}
    floats = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    waiting = [index for index, node in enumerate(model.graph.node) if node.op_type in ("Cos", "Sin") or _rounds(node, floats)]
    found: set[int] = set()
    while waiting:
        index = waiting.pop()
        found.add(index)
        waiting += {makers[name] for name in model.graph.node[index].input if name in makers} - found
    return found


def _rounds(node: NodeProto, floats: set[str]) -> bool:
    return node.op_type == "Cast" and node.input[0] in floats and any(each.i == TensorProto.INT64 for each in node.attribute)


def _halve(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        most = np.finfo(np.float16).max
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).clip(-most, most).astype(np.float16), tensor.name))


def _halve_attributes(node: NodeProto) -> None:
    """Constants, and casts to float32, inside a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _halve(attribute.t)
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _with_casts(node: NodeProto) -> Iterator[NodeProto]:
    """A node, and the casts that stand at its borders: from exact angles to halves, from halves to logits."""
    for place in WHOLE.get(node.op_type, ()):
        given = node.input[place]
        node.input[place] = f"{node.output[0]}_{place}_whole"
        yield helper.make_node("Cast", [given], [node.input[place]], name=f"{node.input[place]}_cast", to=TensorProto.FLOAT)
    output = node.output[0]
    if output not in LOGITS and node.op_type not in ("Cos", "Sin", *WHOLE):
        yield node
        return
    node.output[0] = f"{output}_before_cast"
    yield node
    kind = TensorProto.FLOAT if output in LOGITS else TensorProto.FLOAT16
    yield helper.make_node("Cast", [node.output[0]], [output], name=f"{output}_cast", to=kind)


def dynamic(model: ModelProto) -> ModelProto:
    """Matrices in int8 with a scale per column; activations in uint8 with a scale that each call measures anew."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        quantize_dynamic(_untied(model), path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
        return _with_shapes(path)


def calibrated(model: ModelProto, samples: Iterable[Inputs]) -> ModelProto:
    """Matrices in int8 with a scale per column; activations in uint8 within fixed limits, those that the samples reach."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with _quiet(), TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        quantize_static(
            _untied(model),
            path,
            _Reader(iter(samples)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return _with_shapes(path)


def _with_shapes(path: Path) -> ModelProto:
    """The graph in a file, with the shapes that serving reads off it."""
    onnx.shape_inference.infer_shapes_path(path, path)
    return onnx.load(path)


@dataclass(frozen=True)
class _Reader:
    """Samples as onnxruntime's calibration asks for them: one after the other, None at the end."""

    samples: Iterator[Inputs]

    def get_next(self) -> Inputs | None:
        return next(self.samples, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice to itself; with a handler in place it leaves the program's logging as it is."""
    root, handler, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)


def _untied(model: ModelProto) -> ModelProto:
    """The graph with named nodes and with transposed weights stored as such, so that every matrix is a constant.

    A tied head reads the embedding through a Transpose, behind which onnxruntime's quantisation does not look.
    """
    untied = ModelProto()
    untied.CopyFrom(model)
    graph, weights = untied.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    inferred = [value for value in graph.value_info if value.name not in weights]  # onnxruntime may turn a Gemm's weights around
    del graph.value_info[:]
    graph.value_info.extend(inferred)
    for index, node in enumerate(nodes):
        if node.op_type == "Transpose" and node.input[0] in weights:
            axes = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
            array = numpy_helper.to_array(weights[node.input[0]]).transpose(axes)
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), node.output[0]))
        else:
            node.name = node.name or f"node_{index}"
            graph.node.append(node)
    return untied
