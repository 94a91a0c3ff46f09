"""An ONNX file, looked through before anything runs it.

A graph is a program from a stranger. ONNX lets any tensor name a file to read, onnxruntime lets one name an address in
memory, operators of some domains load libraries, and a few bytes can ask for any amount of memory. What exporters of
language models don't write is therefore refused: functions, sparse tensors, loops, operators that are not on the list.

Source: https://onnx.ai/onnx/repo-docs/ExternalData.html; CVE-2022-25882, CVE-2024-27318, CVE-2024-5187 (onnx reads outside files).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from llm.errors import ArtifactError

REMEDY = "point to an `onnx` folder of export, or run export again"
GRAPH_BYTES = 2**31  # where protobuf ends
ELEMENTS_PER_BYTE = 4  # of the narrowest type, int2
AXES = 8
STANDARD = ("", "ai.onnx")
ENDLESS = ("Loop", "Scan", "SequenceMap")
# fmt: off
MICROSOFT = {  # what exporters and optimizers of language models write
    "Attention", "BiasAdd", "BiasGelu", "BiasSoftmax", "DequantizeLinear", "DynamicQuantizeMatMul", "EmbedLayerNormalization",
    "FastGelu", "FusedMatMul", "GatherBlockQuantized", "Gelu", "GroupQueryAttention", "MatMulBnb4", "MatMulIntegerToFloat",
    "MatMulNBits", "MoE", "MultiHeadAttention", "QAttention", "QGemm", "QLinearAdd", "QLinearConcat", "QLinearMul",
    "QLinearSigmoid", "QLinearSoftmax", "QMoE", "QuantizeLinear", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}
# fmt: on


def check_graph(path: Path) -> None:
    """Refuse an ONNX file that is damaged, reads outside its folder, or does what no exported language model does.

    Raises: ArtifactError
    """
    model = _parse(path)
    if model.functions or model.training_info:
        raise ArtifactError("graph has functions or training of its own", value=path, remedy=REMEDY)
    for message in _messages(model):
        if isinstance(message, onnx.SparseTensorProto):
            raise ArtifactError("graph has sparse tensors", value=path, remedy=REMEDY)
        if isinstance(message, onnx.NodeProto):
            _check_operator(message)
        if isinstance(message, onnx.TensorProto):
            _check_tensor(message, path.parent)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ArtifactError("graph is not valid ONNX", value=f"{path} ({shown(error)})", remedy=REMEDY) from error


def read_plain(path: Path, most_bytes: int) -> bytes:
    """The content of a file that is neither a link, nor a pipe, nor a second name of another file.

    Raises: ArtifactError if it is, or is larger than may be.
    """
    try:
        _check_plain(path, path.lstat(), most_bytes)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _check_plain(path, os.fstat(descriptor), most_bytes)  # it may have been replaced meanwhile
            return file.read(most_bytes)
    except OSError as error:
        raise ArtifactError("file can't be read", value=f"{path} ({error.strerror})", remedy=REMEDY) from error


def _check_plain(path: Path, status: os.stat_result, most_bytes: int) -> None:
    if not _is_plain(status):
        raise ArtifactError("not a plain file of this folder", value=path, remedy="copy the file's content instead of a link")
    if status.st_size > most_bytes:
        raise ArtifactError("file is too large", value=f"{path}, {status.st_size} bytes", remedy=REMEDY)


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto.FromString(read_plain(path, GRAPH_BYTES))
    except (DecodeError, RecursionError) as error:
        raise ArtifactError("graph can't be read", value=f"{path} ({error})", remedy=REMEDY) from error
    if not model.graph.node:
        raise ArtifactError("graph is empty", value=path, remedy=REMEDY)
    return model


def _messages(message: Any) -> Iterator[Message]:
    """A message and all below it: attributes, subgraphs, whatever a later ONNX adds."""
    waiting = [message]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def _check_operator(node: onnx.NodeProto) -> None:
    known = node.op_type in MICROSOFT if node.domain == "com.microsoft" else node.domain in STANDARD
    if not known or node.op_type in ENDLESS:
        value = f"{shown(node.op_type)} of {shown(node.domain) or 'ai.onnx'}"
        raise ArtifactError("graph has an operator that is not served", value=value, remedy=REMEDY)


def _check_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    """A tensor has as many elements as it has data for."""
    stored = _external_bytes(tensor, folder) if tensor.data_location == tensor.EXTERNAL or tensor.external_data else _inline_items(tensor)
    elements = prod(tensor.dims)
    if len(tensor.dims) > AXES or any(size < 0 for size in tensor.dims) or elements > ELEMENTS_PER_BYTE * stored:
        value = f"{shown(tensor.name)} claims {shown(list(tensor.dims))} and has {stored} bytes"
        raise ArtifactError("tensor's shape is false", value=value, remedy=REMEDY)


def _inline_items(tensor: onnx.TensorProto) -> int:
    typed = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data, tensor.string_data)
    return len(tensor.raw_data) + sum(map(len, typed))


def _external_bytes(tensor: onnx.TensorProto, folder: Path) -> int:
    """How much of a file beside the graph is this tensor's.

    Raises: ArtifactError if it lies elsewhere, behind a link, nowhere, or beyond the file's end.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = folder / Path(entries.get("location", "")).name
    if entries.get("location") != path.name or path.is_symlink():
        raise ArtifactError("graph reads weights from outside its folder", value=shown(entries.get("location")), remedy=REMEDY)
    try:
        status = path.lstat()
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", status.st_size - offset))
    except (OSError, ValueError) as error:
        raise ArtifactError("graph's weights are missing", value=shown(path), remedy=REMEDY) from error
    if not _is_plain(status) or len(entries) != len(tensor.external_data) or min(offset, length) < 0 or offset + length > status.st_size:
        raise ArtifactError("graph's weights are not a part of a plain file", value=shown(path), remedy=REMEDY)
    return length


def shown(value: object, most: int = 200) -> str:
    """A stranger's words, short and on one line."""
    text = str(value)
    return "".join(letter if letter.isprintable() else "�" for letter in text[:most]) + ("…" if len(text) > most else "")
