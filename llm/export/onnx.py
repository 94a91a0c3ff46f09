"""A model as one ONNX graph with a key/value cache, in the names that optimum, onnxruntime-genai and transformers.js share.

    input_ids [batch, sequence], attention_mask [batch, past + sequence], position_ids [batch, sequence],
    past_key_values.{i}.key|value [batch, kv_heads, past, head_dim]
    → logits [batch, sequence, vocabulary], present.{i}.key|value [batch, kv_heads, past + sequence, head_dim]

The past travels as flat tensors: exporting a cache object ties the graph to one library's version of it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from llm.artifact import write_json
from llm.errors import ArtifactError
from llm.export.config import ExportConfig
from llm.export.huggingface import special_ids, write_config
from llm.export.tokenizer import write_tokenizer
from llm.model.decoder import Decoder, count_parameters, head_width


class FlatCacheDecoder(nn.Module):
    """A decoder whose inputs and outputs are tensors only, and that understands left padding."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        pairs = list(zip(past[0::2], past[1::2], strict=True))
        mask = padded_causal_mask(attention_mask, sequence=input_ids.shape[1])
        logits, present = self.model(input_ids, past=pairs, positions_BT=position_ids, mask=mask)
        return logits, *(tensor for pair in present for tensor in pair)


def padded_causal_mask(attention_mask_BS: Tensor, *, sequence: int) -> Tensor:
    """True where a new token may attend: B, 1, T, S.

    A padded position attends to itself, since a softmax over nothing is NaN, and a NaN in the cache would
    reach every later token of its row through 0 · NaN.
    """
    keys_S = torch.arange(attention_mask_BS.shape[1], device=attention_mask_BS.device)
    queries_T1 = keys_S[-sequence:, None]
    visible_B11S = attention_mask_BS[:, None, None, :].bool()
    return (keys_S < queries_T1) & visible_B11S | (keys_S == queries_T1)


def write(model: Decoder, tokenizer_model: Path, folder: Path, config: ExportConfig) -> None:
    """Write model.onnx, config.json, genai_config.json and the tokenizer's files.

    Raises: ArtifactError if the graph that comes out is not valid ONNX.
    """
    write_graph(model, folder / "model.onnx", config)
    write_config(model, tokenizer_model, folder)
    write_json(folder / "genai_config.json", genai_config(model, special_ids(tokenizer_model)))
    write_tokenizer(tokenizer_model, folder, context_tokens=model.config.max_positions)


def write_graph(model: Decoder, path: Path, config: ExportConfig) -> None:
    """Trace the model, which must be in float32, and write the graph; large weights go to a file beside it."""
    inputs, shapes = _example(model)
    past_names = cache_names("past_key_values", model.config.num_layers)
    with quiet():
        program = torch.onnx.export(
            FlatCacheDecoder(model).eval(),
            inputs,
            dynamo=True,
            opset_version=config.opset,
            input_names=["input_ids", "attention_mask", "position_ids", *past_names],
            output_names=["logits", *cache_names("present", model.config.num_layers)],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export returns a program when dynamo is on"
    _tidy(program.model)
    weights_bytes = 4 * count_parameters(model)
    program.save(str(path), external_data=weights_bytes >= config.external_data_bytes)
    _check(path)


def _tidy(model: onnx_ir.Model) -> None:
    """Name the mask's axis, and drop the exporter's traces of source files: they change bytes, not answers."""
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    mask.shape = onnx_ir.Shape(["batch", "past + sequence"])
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


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ArtifactError("exported graph is not valid ONNX", value=str(error), remedy="change export.opset") from error


def cache_names(prefix: str, num_layers: int) -> list[str]:
    """`prefix.0.key`, `prefix.0.value`, `prefix.1.key`, …"""
    return [f"{prefix}.{layer}.{kind}" for layer in range(num_layers) for kind in ("key", "value")]


def _example(model: Decoder) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs to trace with and the names of their free axes; no free axis is 0 or 1 long, which would freeze it."""
    B, T, P = 2, 3, 4
    config = model.config
    device = model.embedding.weight.device
    batch, sequence, past = Dim("batch", max=2**15), Dim("sequence", max=2**20), Dim("past", min=0, max=2**20)
    ids, positions = (torch.zeros(B, T, dtype=torch.int64, device=device) for _ in range(2))  # one tensor twice would become one input
    mask = torch.ones(B, P + T, dtype=torch.int64, device=device)
    cache = [torch.zeros(B, config.num_kv_heads, P, head_width(config), device=device) for _ in range(2 * config.num_layers)]
    flat = {0: batch, 1: sequence}
    shapes = (flat, {0: batch, 1: Dim.DYNAMIC}, flat, [{0: batch, 2: past}] * len(cache))
    return (ids, mask, positions, cache), shapes


def genai_config(model: Decoder, ids: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime-genai needs to open the folder.

    Source: https://onnxruntime.ai/docs/genai/reference/config.html.
    """
    config = model.config
    cache = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    present = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    decoder = {
        "filename": "model.onnx",
        "session_options": {"provider_options": []},
        "head_size": head_width(config),
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_hidden_layers": config.num_layers,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids", **cache},
        "outputs": {"logits": "logits", **present},
    }
    sizes = {"type": "llama", "vocab_size": model.vocab_size, "context_length": config.max_positions}
    search = {"do_sample": False, "max_length": config.max_positions, "past_present_share_buffer": False}
    return {"model": {**sizes, **ids, "decoder": decoder}, "search": search}
