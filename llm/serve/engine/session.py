"""An exported graph and its key/value cache in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from llm.errors import ArtifactError
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

Cache = list[ort.OrtValue]  # per layer: keys, then values, [batch, kv_heads, past, head_dim]


def graph_file(variant: str) -> str:
    """The graph's file: model.onnx, or model_<variant>.onnx, as transformers.js names it."""
    return f"model_{variant}.onnx" if variant else "model.onnx"


class Session:
    """Logits from token ids. Stateless: the cache is the caller's, so threads may share one session."""

    def __init__(self, folder: ModelFolder, *, threads: int = 0, variant: str = "") -> None:
        self.folder = folder
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(folder.path / graph_file(variant)), options, providers=["CPUExecutionProvider"])
        except BAD_GRAPH as error:
            raise ArtifactError("graph can't be loaded", value=f"{folder.path} ({error})", remedy=REMEDY) from error
        halves = any(value.type == "tensor(float16)" for value in self._session.get_inputs())
        self._cache_type = np.float16 if halves else np.float32
        kinds = [f"{layer}.{kind}" for layer in range(folder.num_layers) for kind in ("key", "value")]
        self._past_names = [f"past_key_values.{kind}" for kind in kinds]
        self._output_names = ["logits", *(f"present.{kind}" for kind in kinds)]

    def empty_cache(self, batch: int = 1) -> Cache:
        """The cache before the first token."""
        shape = (batch, self.folder.num_kv_heads, 0, self.folder.head_dim)
        return [ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._cache_type)) for _ in self._past_names]

    def run(self, ids: np.ndarray, cache: Cache, *, attention_mask: np.ndarray | None = None) -> tuple[np.ndarray, Cache]:
        """Logits [batch, sequence, vocabulary] of new tokens, and the cache that holds them too.

        `attention_mask` [batch, past + sequence] is 0 on left padding; positions count from the first real token.
        """
        batch, sequence = ids.shape
        if attention_mask is None:
            attention_mask = np.ones((batch, cache[0].shape()[2] + sequence), np.int64)
        positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)[:, -sequence:]
        arrays = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": positions}
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, np.int64)) for name, array in arrays.items()}
        logits, *present = self._session.run_with_ort_values(self._output_names, feeds | dict(zip(self._past_names, cache, strict=True)))
        return logits.numpy(), present
