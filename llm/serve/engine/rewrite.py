"""The exported graph rewritten for serving: the same weights, and a cache that stays where it is.

The exported graph returns past and new keys joined, which copies the whole cache at every step. Here the attention of each
layer becomes onnxruntime's GroupQueryAttention: it writes new keys and values into a buffer that is past and present at
once, and every row of a batch has a length of its own without padding. Rotary positions, a dozen small operators per layer,
become part of it, and it reads queries, keys and values as their one product leaves them. The head reads only positions that
are asked for.

    input_ids, position_ids [batch, sequence], past_key_values.{i}.key|value [batch, kv_heads, capacity, head_dim],
    seqlens_k [batch] (a row's length with its new tokens, less one), total_sequence_length (of the longest row),
    logit_rows [n] (places in batch · sequence)
    → logits [n, vocabulary], hidden [batch, sequence, width], present.{i}.key|value (the past's buffers)

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.reference import ReferenceEvaluator

from llm.errors import ArtifactError
from llm.serve.engine.products import drop_unread, merge_products

INT32, INT64 = TensorProto.INT32, TensorProto.INT64
MICROSOFT = "com.microsoft"
MATRIX_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")
HIDDEN = "hidden"
REMEDY = "export the model again"
SHARED_SCALES = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
SWAPPED = [0, 2, 1, 3]  # [batch, heads, sequence, head_dim] ↔ [batch, sequence, heads, head_dim]
COSINES, SINES = "serving.cosines", "serving.sines"  # [positions, head_dim / 2]


class Rotation(NamedTuple):
    """A query or key before its rotation, and what it is multiplied by: [batch, 1, sequence, head_dim]."""

    source: str
    cosines: str
    sines: str


@dataclass(frozen=True)
class Layer:
    """One layer's attention in the exported graph, and its sizes."""

    name: str
    attention: NodeProto
    answer: str  # what its output is joined to, [batch, sequence, num_heads · head_dim]; "" if it is read otherwise
    joined: tuple[NodeProto, NodeProto]  # past and new keys, past and new values
    rotations: tuple[Rotation | None, Rotation | None]  # of queries and of new keys
    num_heads: int
    num_kv_heads: int
    head_dim: int


def for_serving(model: ModelProto, folder: Path, *, positions: int) -> ModelProto:
    """The rewritten model, for texts of up to so many tokens; `model` itself, from a file in `folder`, is used up.

    Raises: ArtifactError if the graph isn't as export writes it.
    """
    graph = model.graph
    if any(node.op_type in SHARED_SCALES for node in graph.node):
        remedy = "serve the variant int8 or fp16; quantized is for transformers.js"
        raise ArtifactError("answers would depend on each other", value="activations are scaled over the whole batch", remedy=remedy)
    merge_products(graph)
    layers = list(_layers(graph))
    rotations = [each for layer in layers for each in layer.rotations]
    tables = {(each.cosines, each.sines) for each in rotations if each}
    fused = None not in rotations and len(tables) == 1
    if fused:
        graph.initializer.extend(_rotary_tables(model, tables.pop(), folder, positions))
    attention = {layer.attention.output[0]: layer for layer in layers}
    joins, answers = {node.output[0] for layer in layers for node in layer.joined}, {layer.answer for layer in layers}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] in attention:
            nodes += _grouped_attention(graph, attention[node.output[0]], fused=fused)
        elif node.output[0] not in joins | answers:
            nodes.append(node)
    _count_rows_of_ids(nodes)
    _declare(graph, _read_some_rows(nodes))
    kept = _reachable(nodes, ["logits", HIDDEN, *joins])
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    drop_unread(graph)
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


def _layers(graph: GraphProto) -> Iterator[Layer]:
    """Every layer's attention, found by the names of its cache."""
    makers, shapes = _makers(graph), _shapes(graph)
    readers = {name: node for node in graph.node if node.op_type == "Attention" for name in node.input}
    for past in [value.name for value in graph.input if value.name.startswith("past_key_values.") and value.name.endswith(".key")]:
        name = past.removeprefix("past_key_values.").removesuffix(".key")
        keys, values, attention = (
            each.get(f"present.{name}.{kind}") for each, kind in ((makers, "key"), (makers, "value"), (readers, "key"))
        )
        if not keys or not values or not attention or {keys.op_type, values.op_type} != {"Concat"}:
            raise ArtifactError("graph's attention can't be served", value=f"layer {name}", remedy=REMEDY)
        _, num_heads, _, head_dim = shapes.get(attention.input[0], [0, 0, 0, 0])
        if not num_heads or head_dim % 8:
            raise ArtifactError(
                "graph's heads can't be served", value=f"{num_heads} of {head_dim}", remedy="make their width a multiple of 8"
            )
        rotations = _rotation(makers, attention.input[0]), _rotation(makers, keys.input[1])
        if head_dim % 16:
            rotations = None, None  # such heads GroupQueryAttention doesn't rotate
        answer = _joined(graph, attention.output[0], num_heads * head_dim)
        yield Layer(name, attention, answer, (keys, values), rotations, num_heads, shapes[past][1], head_dim)


def _rotation(makers: dict[str, NodeProto], name: str) -> Rotation | None:
    """How `name` was rotated, x · cosines + (−second half, first half) · sines; None if it wasn't, or otherwise."""

    def inputs(name: str, kind: str, count: int) -> list[str]:
        node = makers.get(name)
        return list(node.input[:count]) if node and node.op_type == kind else [""] * count

    straight, crossed = inputs(name, "Add", 2)
    source, cosines = inputs(straight, "Mul", 2)
    halves, sines = inputs(crossed, "Mul", 2)
    negated, first = inputs(halves, "Concat", 2)
    (second,) = inputs(negated, "Neg", 1)
    split = makers.get(second)
    if not split or split.op_type != "Split" or split.input[0] != source or list(split.output) != [first, second]:
        return None
    return Rotation(source, cosines, sines)


def _rotary_tables(model: ModelProto, names: tuple[str, str], folder: Path, positions: int) -> list[TensorProto]:
    """Cosines and sines of every position, as the graph itself computes them under these names; of two equal halves, one."""
    nodes = _reachable(list(model.graph.node), list(names))
    read = {name for node in nodes for name in node.input}
    constants = [each for each in model.graph.initializer if each.name in read]
    for each in filter(uses_external_data, constants):
        load_external_data_for_tensor(each, str(folder))
    part = helper.make_graph(
        nodes,
        "rotation",
        [_value("position_ids", INT64, [1, positions])],
        [_value(name, TensorProto.FLOAT, [1, 1, positions, "head_dim"]) for name in names],
        constants,
    )
    evaluator = ReferenceEvaluator(helper.make_model(part, opset_imports=model.opset_import))
    answers = np.array(evaluator.run(None, {"position_ids": np.arange(positions)[None]}))
    past = next(value for value in model.graph.input if value.name.startswith("past_key_values."))
    kind = helper.tensor_dtype_to_np_dtype(past.type.tensor_type.elem_type)
    halves = answers[:, 0, 0, :, : answers.shape[-1] // 2].astype(kind)
    return [numpy_helper.from_array(half, name) for half, name in zip(halves, (COSINES, SINES), strict=True)]


def _makers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each value."""
    return {name: node for node in graph.node for name in node.output}


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    """Sizes of each value, 0 where they aren't fixed."""
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in (*graph.value_info, *graph.input)}


def _joined(graph: GraphProto, name: str, width: int) -> str:
    """What heads are joined to right after the attention, [batch, sequence, width]; "" if something else reads them."""
    for kind in ("Transpose", "Reshape"):
        readers = [node for node in graph.node if name in node.input]
        if len(readers) != 1 or readers[0].op_type != kind or _permutation(readers[0]) not in (None, SWAPPED):
            return ""
        name = readers[0].output[0]
    return name if _shapes(graph).get(name) == [0, 0, width] else ""


def _cut(graph: GraphProto, name: str, width: int) -> str:
    """What these heads were cut out of, [batch, sequence, width]; "" if something was done to each of them."""
    makers = _makers(graph)
    for kind in ("Transpose", "Reshape"):
        node = makers.get(name)
        if not node or node.op_type != kind or _permutation(node) not in (None, SWAPPED):
            return ""
        name = node.input[0]
    return name if _shapes(graph).get(name) == [0, 0, width] else ""


def _permutation(node: NodeProto) -> list[int] | None:
    return next((list(item.ints) for item in node.attribute if item.name == "perm"), None)


def _grouped_attention(graph: GraphProto, layer: Layer, *, fused: bool) -> Iterator[NodeProto]:
    """The layer's attention over the shared buffers; `fused`, with its rotation."""
    new = {"query": layer.attention.input[0], "key": layer.joined[0].input[1], "value": layer.joined[1].input[1]}
    if fused:
        new |= {part: each.source for part, each in zip(("query", "key"), layer.rotations, strict=True) if each}
    flat: list[str] = []
    for part, source in new.items():
        width = (layer.num_heads if part == "query" else layer.num_kv_heads) * layer.head_dim
        cut = _cut(graph, source, width)
        flat.append(cut or f"serving.{layer.name}.{part}")
        if not cut:
            yield from _swapped_and_joined(source, flat[-1], width)
    split = _makers(graph).get(flat[0])
    if split and split.op_type == "Split" and list(split.output) == flat:
        flat = [split.input[0], "", ""]
    cache = [f"past_key_values.{layer.name}.key", f"past_key_values.{layer.name}.value"]
    rotation = [COSINES, SINES, "position_ids"] if fused else []
    answer, shape, apart = (f"serving.{layer.name}.{step}" for step in ("answer", "answer.shape", "answer.apart"))
    yield helper.make_node(
        "GroupQueryAttention",
        [*flat, *cache, "seqlens_k", "total_sequence_length", *rotation],
        [layer.answer or answer, *(node.output[0] for node in layer.joined)],
        domain=MICROSOFT,
        num_heads=layer.num_heads,
        kv_num_heads=layer.num_kv_heads,
        do_rotary=int(fused),
        **{item.name: item.f for item in layer.attention.attribute if item.name in ("scale", "softcap")},
    )
    if not layer.answer:
        yield _constant(shape, [0, 0, layer.num_heads, layer.head_dim])
        yield helper.make_node("Reshape", [answer, shape], [apart])
        yield helper.make_node("Transpose", [apart], [layer.attention.output[0]], perm=SWAPPED)


def _swapped_and_joined(source: str, flat: str, width: int) -> Iterator[NodeProto]:
    """From [batch, heads, sequence, head_dim] to [batch, sequence, width]."""
    yield helper.make_node("Transpose", [source], [f"{flat}.swapped"], perm=SWAPPED)
    yield _constant(f"{flat}.shape", [0, 0, width])
    yield helper.make_node("Reshape", [f"{flat}.swapped", f"{flat}.shape"], [flat])


def _count_rows_of_ids(nodes: list[NodeProto]) -> None:
    """Where the exported graph counts its rows in the mask, which serving has none of, count them in the ids."""
    for node in nodes:
        if node.op_type == "Shape" and {item.name: item.i for item in node.attribute}.get("end") == 1:
            node.input[0] = "input_ids"


def _read_some_rows(nodes: list[NodeProto]) -> str:
    """Let the head see only `logit_rows`: a prompt's other logits would cost more than its other layers together."""
    makers = {name: node for node in nodes for name in node.output}
    node = makers["logits"]
    while node.op_type not in MATRIX_PRODUCTS:
        node = makers[node.input[0]]
    place, hidden = next(place for place, each in enumerate(nodes) if each is node), node.input[0]
    node.input[0] = "serving.rows"
    nodes[place:place] = [
        helper.make_node("Flatten", [hidden], ["serving.flat"], axis=2),
        helper.make_node("Gather", ["serving.flat", "logit_rows"], ["serving.rows"], axis=0),
    ]
    if hidden != HIDDEN:
        nodes.insert(place, helper.make_node("Identity", [hidden], [HIDDEN]))
    return hidden


def _reachable(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _declare(graph: GraphProto, hidden: str) -> None:
    """State the inputs and outputs of the rewritten graph."""
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    past = [value for value in graph.input if value.name.startswith("past_key_values.")]
    present = [value for value in graph.output if value.name.startswith("present.")]
    for value in (*past, *present):
        value.type.tensor_type.shape.dim[2].dim_param = "capacity"
    ids = [value for value in graph.input if value.name in ("input_ids", "position_ids")]
    numbers = [_value("seqlens_k", INT32, ["batch"]), _value("total_sequence_length", INT32, []), _value("logit_rows", INT64, ["rows"])]
    logits, states = (known[name].type.tensor_type for name in ("logits", hidden))
    answers = [
        _value("logits", logits.elem_type, ["rows", logits.shape.dim[2].dim_value]),
        _value(HIDDEN, states.elem_type, ["batch", "sequence", states.shape.dim[2].dim_value]),
    ]
    inputs, outputs = (list(map(_copy, values)) for values in (ids + past + numbers, answers + present))
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.extend(outputs)


def _copy(value: ValueInfoProto) -> ValueInfoProto:
    """One that outlives the graph that it was in."""
    return ValueInfoProto.FromString(value.SerializeToString())


def _value(name: str, kind: int, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _constant(name: str, values: list[int]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=values)
