"""An exported graph in onnxruntime."""

from __future__ import annotations

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from llm.errors import ArtifactError
from llm.serve.engine.rewrite import for_serving
from llm.serve.models.folder import ModelFolder
from llm.serve.models.graph import REMEDY

# What onnxruntime raises for a graph that it can't load; these have no base of their own.
BAD_GRAPH = (
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
)


def graph_file(variant: str, file: str = "model.onnx") -> str:
    """The file of a variant of this graph, as transformers.js and optimum name it; "" is the graph itself.

    Example:
        >>> graph_file("int8"), graph_file("int8", "encoder_model.onnx"), graph_file("")
        ('model_int8.onnx', 'encoder_model_int8.onnx', 'model.onnx')
    """
    return f"{file.removesuffix('.onnx')}_{variant}.onnx" if variant else file


def open_session(folder: ModelFolder, file: str = "model.onnx", *, threads: int = 0) -> ort.InferenceSession:
    """The graph rewritten for serving, in onnxruntime.

    Threads spin within a step, where operators follow each other in microseconds, and sleep between steps.
    Raises: ArtifactError if the graph can't be loaded or rewritten.
    """
    path = folder.path / file
    if not path.is_file():
        raise ArtifactError("no such variant of the model", value=path, remedy=REMEDY)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.path))
    model = for_serving(onnx.load(str(path), load_external_data=False), folder.path, positions=folder.context_tokens)
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except BAD_GRAPH as error:
        raise ArtifactError("graph can't be loaded", value=f"{path} ({error})", remedy=REMEDY) from error
