"""From a PyTorch module to a checked ONNX file: traced, tidied, told where it comes from, written, and read again."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import nn

from llm.errors import ArtifactError
from llm.export.config import ExportConfig
from llm.serve.models.graph import check_graph


@dataclass(frozen=True)
class Graph:
    """A module, the inputs to trace it with, and the names that readers of the file go by."""

    module: nn.Module
    inputs: tuple[Any, ...]
    shapes: tuple[Any, ...]  # of the inputs, free axes as torch.export.Dim
    input_names: list[str]
    output_names: list[str]
    axes: Mapping[str, list[str | int]] = field(default_factory=dict)  # of inputs and outputs that the tracer would name clumsily


def write_graph(graph: Graph, path: Path, config: ExportConfig, properties: Mapping[str, str] | None = None) -> None:
    """Trace a module whose weights are in float32 and write the file; large weights go to a file beside it.

    `properties` become the model's metadata: what a reader of the file alone can know of its origin.

    Raises: ArtifactError if what comes out is not valid ONNX, or has operators or files of weights that serving refuses.
    """
    with quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            graph.inputs,
            dynamo=True,
            opset_version=config.opset,
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=graph.shapes,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export returns a program when dynamo is on"
    _tidy(program.model, graph.axes)
    program.model.metadata_props.update(properties or {})
    weights_bytes = sum(parameter.numel() * parameter.element_size() for parameter in graph.module.parameters())
    beside = f"{path.name}_data" if weights_bytes >= config.external_data_bytes else None  # the name that transformers.js asks for
    onnx_ir.save(program.model, path, external_data=beside)
    check(path)


def _tidy(model: onnx_ir.Model, axes: Mapping[str, list[str | int]]) -> None:
    """Name the axes, and drop the exporter's traces of source files: they change bytes, not answers."""
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for name, named_axes in axes.items():
        values[name].shape = onnx_ir.Shape(named_axes)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's own deprecation warnings and its notes on packages that aren't installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name")
        try:
            yield
        finally:
            logger.setLevel(level)


def check(path: Path) -> None:
    """Refuse a file that isn't valid ONNX through and through, or that serving would refuse.

    Raises: ArtifactError.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError("exported graph is not valid ONNX", value=str(error), remedy="change export.opset") from error
    check_graph(path)
