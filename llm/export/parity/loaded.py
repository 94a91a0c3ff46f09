"""A written graph in onnxruntime, apart from the engine that will serve it: arrays in, arrays out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from llm.serve.engine.session import graph_file

Arrays = dict[str, np.ndarray]
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
ENCODER, DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"


class Loaded:
    """A graph by its file. Stateless: a cache is the caller's."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, arrays: Arrays, outputs: list[str] | None = None) -> Arrays:
        """Outputs by name: all, or these."""
        names = outputs or self.outputs
        return dict(zip(names, self._session.run(names, arrays), strict=True))

    def empty_cache(self, batch: int = 1) -> Arrays:
        """What stands in for the past before the first token, by input name."""
        past = {name: value for name, value in self.inputs.items() if name.startswith("past_key_values.")}
        return {name: np.zeros((batch, value.shape[1], 0, value.shape[3]), TYPES[value.type]) for name, value in past.items()}


def as_past(outputs: Arrays) -> Arrays:
    """The cache among a graph's outputs, under the names of its inputs."""
    return {name.replace("present.", "past_key_values.", 1): array for name, array in outputs.items() if name.startswith("present.")}


class CachedGraph:
    """Logits from token ids by the graph of a model that writes text."""

    def __init__(self, path: Path) -> None:
        self._graph = Loaded(path)

    def empty_cache(self, batch: int = 1) -> Arrays:
        """The cache before the first token."""
        return self._graph.empty_cache(batch)

    def run(self, ids: np.ndarray, cache: Arrays, *, attention_mask: np.ndarray | None = None) -> tuple[np.ndarray, Arrays]:
        """Logits [batch, sequence, vocabulary] of new tokens, and the cache that holds them too; the rest as for `inputs`."""
        found = self._graph(self.inputs(ids, cache, attention_mask=attention_mask))
        return found["logits"], as_past(found)

    @staticmethod
    def inputs(ids: np.ndarray, cache: Arrays, *, attention_mask: np.ndarray | None = None) -> Arrays:
        """What the graph takes.

        `attention_mask` [batch, past + sequence] is 0 on left padding; positions count from the first real token.
        """
        batch, sequence = ids.shape
        past = next(iter(cache.values())).shape[2]
        if attention_mask is None:
            attention_mask = np.ones((batch, past + sequence), np.int64)
        positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)[:, -sequence:]
        return {"input_ids": ids.astype(np.int64), "attention_mask": attention_mask, "position_ids": positions} | cache


class Seq2SeqGraphs:
    """The two graphs of an encoder–decoder; of a variant, both are of its kind."""

    def __init__(self, folder: Path, kind: str = "") -> None:
        self._encoder, self._decoder = (Loaded(folder / graph_file(kind, file)) for file in (ENCODER, DECODER))

    def empty_cache(self, batch: int = 1) -> Arrays:
        """The cache before the first token."""
        return self._decoder.empty_cache(batch)

    def encode(self, ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """What the encoder makes of its text: [batch, sequence, width]."""
        return self._encoder(self.encoder_inputs(ids, attention_mask))["last_hidden_state"]

    def decode(self, ids: np.ndarray, memory: np.ndarray, attention_mask: np.ndarray, cache: Arrays) -> tuple[np.ndarray, Arrays]:
        """Logits [batch, sequence, vocabulary] of new tokens, and the cache that holds them too."""
        found = self._decoder(self.decoder_inputs(ids, memory, attention_mask, cache))
        return found["logits"], as_past(found)

    @staticmethod
    def encoder_inputs(ids: np.ndarray, attention_mask: np.ndarray) -> Arrays:
        """What the encoder takes."""
        return {"input_ids": ids, "attention_mask": attention_mask}

    @staticmethod
    def decoder_inputs(ids: np.ndarray, memory: np.ndarray, attention_mask: np.ndarray, cache: Arrays) -> Arrays:
        """What the decoder takes."""
        return {"input_ids": ids, "encoder_hidden_states": memory, "encoder_attention_mask": attention_mask} | cache
