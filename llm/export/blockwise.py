"""A float32 graph with its weights in blocks of 8 or 4 bits, each block with a scale and a zero point of its own.

    weight ≈ scale · (code - zero)        32 weights of a row in a block, codes from 0 to 2**bits - 1

Axes: N rows of a matrix, its outputs; K weights in a row, its inputs; G blocks in a row.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, MatMulNBits and GatherBlockQuantized,
which every build of onnxruntime has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

BLOCK = 32  # weights
CONTRIB = "com.microsoft"
INT8_PRODUCTS = 4  # MatMulNBits' accuracy_level: inside the operator, activations are rounded to 8 bits in blocks too


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks, as MatMulNBits reads it."""

    codes: np.ndarray  # uint8, N, G, bytes of a block; of two 4-bit codes in a byte the first is the lower half
    scales: np.ndarray  # float32, N, G
    zeros: np.ndarray  # uint8, N, G · bits / 8


def in_blocks(weights_NK: np.ndarray, *, bits: int) -> Blocks:
    """Round every weight to the nearest of 2**bits even steps between its block's least and greatest weight, zero among them.

    Example:
        >>> blocks = in_blocks(np.array([[0.0, 1.0, 3.0]], np.float32), bits=4)
        >>> blocks.codes[0, 0, :2].tolist(), float(blocks.scales[0, 0])
        ([80, 15], 0.20000000298023224)
    """
    N, K = weights_NK.shape
    padded = np.pad(weights_NK.astype(np.float32), ((0, 0), (0, -K % BLOCK))).reshape(N, -1, BLOCK)
    low, high = padded.min(-1, initial=0.0), padded.max(-1, initial=0.0)
    most = 2**bits - 1
    scales = (high - low) / np.float32(most)
    scales[scales == 0] = 1.0
    zeros = np.rint(-low / scales)
    codes = np.clip(np.rint(padded / scales[..., None]) + zeros[..., None], 0, most)
    return Blocks(_packed(codes.astype(np.uint8), bits), scales, _packed(zeros.astype(np.uint8), bits))


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes side by side in bytes, along the last axis."""
    if bits == 8:
        return codes
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return even[..., 0::2] | even[..., 1::2] << 4


def blockwise(model: ModelProto, *, bits: int) -> ModelProto:
    """The same graph with matrices in `bits`, embeddings and head in 8; between operators numbers stay float32.

    A head that is tied to the embedding stays so: both read one table. It keeps 8 bits because in 4 it loses as much as
    all other matrices together.
    """
    quantized = ModelProto()
    quantized.CopyFrom(model)
    rewriter = _Rewriter.of(quantized.graph, bits)
    nodes = [each for node in model.graph.node for each in rewriter.rewritten(node)]
    del quantized.graph.node[:]
    quantized.graph.node.extend(nodes)
    _drop_unread(quantized.graph)
    quantized.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return quantized


@dataclass(frozen=True)
class _Rewriter:
    """Replaces nodes that read weights by nodes that read blocks, and stores the blocks in the graph."""

    graph: GraphProto
    bits: int
    tables: dict[str, np.ndarray]  # float32 weights of two axes by name
    matrices: dict[str, tuple[str, np.ndarray]]  # what MatMul reads: the weights' name, and the matrix as N, K
    heads: set[str]  # what MatMul gives where at most a bias and a shape stand between it and an output of the graph
    stored: dict[tuple[str, int], list[str]]  # names of a matrix's blocks in so many bits

    @classmethod
    def of(cls, graph: GraphProto, bits: int) -> _Rewriter:
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        tables = {name: array for name, array in arrays.items() if array.ndim == 2 and array.dtype == np.float32}
        matrices = {name: (name, table.T) for name, table in tables.items()}
        transposes = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in tables]
        matrices |= {node.output[0]: (node.input[0], tables[node.input[0]]) for node in transposes}
        heads = {value.name for value in graph.output}
        for node in reversed(graph.node):
            if node.op_type in ("Add", "Squeeze") and node.output[0] in heads:
                heads.add(node.input[0])
        return cls(graph, bits, tables, matrices, heads, {})

    def rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        """What stands in a node's place."""
        if node.op_type == "MatMul" and node.input[1] in self.matrices:
            yield self._matmul(node)
        elif node.op_type == "Gather" and node.input[0] in self.tables and self.tables[node.input[0]].shape[1] % BLOCK == 0:
            yield from self._gather(node)
        else:
            yield node

    def _matmul(self, node: NodeProto) -> NodeProto:
        name, matrix_NK = self.matrices[node.input[1]]
        bits = 8 if node.output[0] in self.heads else self.bits
        N, K = matrix_NK.shape
        settings: dict[str, Any] = {"N": N, "K": K, "bits": bits, "block_size": BLOCK, "accuracy_level": INT8_PRODUCTS}
        inputs = [node.input[0], *self._store(name, matrix_NK, bits)]
        return helper.make_node("MatMulNBits", inputs, [node.output[0]], name=node.name, domain=CONTRIB, **settings)

    def _gather(self, node: NodeProto) -> Iterator[NodeProto]:
        """Rows of a table; the same bytes serve as a matrix with another shape."""
        name, output = node.input[0], node.output[0]
        table_VD, shape, rows = self.tables[name], f"{output}_shape", f"{output}_rows"
        codes, scales, zeros = self._store(name, table_VD, 8)
        self.graph.initializer.append(numpy_helper.from_array(np.array(table_VD.shape), shape))
        yield helper.make_node("Reshape", [codes, shape], [rows], name=f"{output}_reshape")
        settings: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "bits": 8, "block_size": BLOCK}
        inputs = [rows, node.input[1], scales, zeros]
        yield helper.make_node("GatherBlockQuantized", inputs, [output], name=node.name, domain=CONTRIB, **settings)

    def _store(self, name: str, matrix_NK: np.ndarray, bits: int) -> list[str]:
        """The names under which a matrix's blocks are in the graph."""
        if (name, bits) not in self.stored:
            blocks = in_blocks(matrix_NK, bits=bits)
            arrays = {f"{name}_{bits}bit": blocks.codes, f"{name}_{bits}bit_scales": blocks.scales, f"{name}_{bits}bit_zeros": blocks.zeros}
            self.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in arrays.items())
            self.stored[name, bits] = list(arrays)
        return self.stored[name, bits]


def _drop_unread(graph: GraphProto) -> None:
    """Remove transposes and weights that no node reads any more."""
    read = {name for node in graph.node for name in node.input}
    nodes = [node for node in graph.node if node.op_type != "Transpose" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
