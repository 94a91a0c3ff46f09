"""Matrices that multiply the same states become one, since for one token a product costs about as much to begin as to compute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

COLUMNS = {"MatMul": -1, "MatMulNBits": 0}  # the axis of the weights that holds the outputs


def merge_products(graph: GraphProto) -> None:
    """Replace products of the same states by one and a Split, under the names that their outputs had.

    Weights in files of their own stay there: a model that needs them is too large for one message, and its products are long.
    """
    weights = {each.name: each for each in graph.initializer if not uses_external_data(each)}
    groups: dict[object, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type in COLUMNS and all(name in weights for name in node.input[1:] if name) and len(weights[node.input[1]].dims) > 1:
            groups[_alike(node, weights)].append(node)
    shared = [nodes for nodes in groups.values() if len(nodes) > 1]
    instead: dict[str, Iterable[NodeProto]] = {node.output[0]: () for nodes in shared for node in nodes}
    instead |= {nodes[0].output[0]: _merged(graph, nodes, weights) for nodes in shared}
    nodes = [each for node in graph.node for each in instead.get(node.output[0], (node,))]
    del graph.node[:]
    graph.node.extend(nodes)


def drop_unread(graph: GraphProto) -> None:
    """Forget weights that no node reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _alike(node: NodeProto, weights: dict[str, TensorProto]) -> object:
    """What products have in common that can be one."""
    settings = sorted((item.name, item.i) for item in node.attribute if item.name != "N")
    tensors = [weights[name] if name else None for name in node.input[1:]]
    shapes = tuple(each and (each.data_type, len(each.dims)) for each in tensors)
    rows = list(weights[node.input[1]].dims)
    del rows[COLUMNS[node.op_type]]
    return node.op_type, node.input[0], tuple(settings), shapes, tuple(rows)


def _merged(graph: GraphProto, nodes: list[NodeProto], weights: dict[str, TensorProto]) -> Iterable[NodeProto]:
    """One product and the Split of what it gives; its weights are added to the graph."""
    name, axis = f"serving.{nodes[0].output[0]}", COLUMNS[nodes[0].op_type]
    widths = [weights[node.input[1]].dims[axis] for node in nodes]
    product, inputs = NodeProto.FromString(nodes[0].SerializeToString()), [nodes[0].input[0]]
    for place, each in enumerate(nodes[0].input[1:], start=1):
        inputs.append(f"{name}.weights.{place}" if each else "")
        if each:
            parts = [numpy_helper.to_array(weights[node.input[place]]) for node in nodes]
            graph.initializer.append(numpy_helper.from_array(np.concatenate(parts, axis=axis), inputs[-1]))
    graph.initializer.append(numpy_helper.from_array(np.array(widths), f"{name}.widths"))
    product.input[:], product.output[:] = inputs, [f"{name}.merged"]
    for item in product.attribute:
        item.i = sum(widths) if item.name == "N" else item.i
    return product, helper.make_node("Split", [product.output[0], f"{name}.widths"], [node.output[0] for node in nodes], axis=-1)
