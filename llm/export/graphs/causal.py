"""A model that writes text as one graph with a key/value cache, in the names that optimum, onnxruntime-genai and transformers.js share.

    input_ids [batch, sequence], attention_mask [batch, past + sequence], position_ids [batch, sequence],
    past_key_values.{i}.key|value [batch, kv_heads, past, head_dim]
    → logits [batch, sequence, vocabulary], present.{i}.key|value [batch, kv_heads, past + sequence, head_dim],
      hidden [batch, sequence, width]

One graph serves the first pass (past is 0 long) and every later one. `hidden`, what the head reads, is for embeddings;
who doesn't ask for it pays nothing. The past travels as flat tensors: exporting a cache object ties the graph to one
library's version of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from llm.export.graphs.experts import traceable
from llm.export.graphs.trace import Graph
from llm.model.config import Gpt2Config, LlamaSizes
from llm.model.decoder import Decoder, head_width
from llm.model.gpt2 import Gpt2
from llm.model.moe import Moe


def graphs(model: Decoder | Gpt2) -> dict[str, Graph]:
    """The one graph of a model that writes text, by file name."""
    inputs, shapes = _example(model)
    num_layers = model.config.num_layers
    graph = Graph(
        FlatCacheDecoder(traceable(model) if isinstance(model, Moe) else model),
        inputs,
        shapes,
        ["input_ids", "attention_mask", "position_ids", *cache_names("past_key_values", num_layers)],
        ["logits", *cache_names("present", num_layers), "hidden"],
        {"attention_mask": ["batch_size", "past + sequence"]},
    )
    return {"model.onnx": graph}


class FlatCacheDecoder(nn.Module):
    """A decoder whose inputs and outputs are tensors only, and that understands left padding."""

    def __init__(self, model: Decoder | Gpt2) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        pairs = list(zip(past[0::2], past[1::2], strict=True))
        mask = padded_causal_mask(attention_mask, sequence=input_ids.shape[1])
        hidden, present = self.model.extend(input_ids, past=pairs, positions_BT=position_ids, mask=mask)
        return self.model.head(hidden), *(tensor for pair in present for tensor in pair), hidden


def padded_causal_mask(attention_mask_BS: Tensor, *, sequence: int) -> Tensor:
    """True where a new token may attend: B, 1, T, S.

    A padded position attends to itself, since a softmax over nothing is NaN, and a NaN in the cache would
    reach every later token of its row through 0 · NaN.
    """
    keys_S = torch.arange(attention_mask_BS.shape[1], device=attention_mask_BS.device)
    queries_T1 = keys_S[-sequence:, None]
    visible_B11S = attention_mask_BS[:, None, None, :].bool()
    return (keys_S < queries_T1) & visible_B11S | (keys_S == queries_T1)


def cache_names(prefix: str, num_layers: int) -> list[str]:
    """`prefix.0.key`, `prefix.0.value`, `prefix.1.key`, …"""
    return [f"{prefix}.{layer}.{kind}" for layer in range(num_layers) for kind in ("key", "value")]


def cache_heads(config: LlamaSizes | Gpt2Config) -> tuple[int, int]:
    """Key/value heads of a layer, and the width of one."""
    if isinstance(config, Gpt2Config):
        return config.num_heads, config.width // config.num_heads
    return config.num_kv_heads, head_width(config)


def _example(model: Decoder | Gpt2) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs to trace with and the names of their free axes; no free axis is 0 or 1 long, which would freeze it."""
    B, T, P = 2, 3, 4
    device = model.embedding.weight.device
    batch, sequence, past = Dim("batch_size", max=2**15), Dim("sequence", max=2**20), Dim("past", min=0, max=2**20)
    ids, positions = (torch.zeros(B, T, dtype=torch.int64, device=device) for _ in range(2))  # one tensor twice would become one input
    mask = torch.ones(B, P + T, dtype=torch.int64, device=device)
    kv_heads, head_dim = cache_heads(model.config)
    cache = [torch.zeros(B, kv_heads, P, head_dim, device=device) for _ in range(2 * model.config.num_layers)]
    flat = {0: batch, 1: sequence}
    shapes = (flat, {0: batch, 1: Dim.DYNAMIC}, flat, [{0: batch, 2: past}] * len(cache))
    return (ids, mask, positions, cache), shapes


def genai_config(model: Decoder | Gpt2, ids: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime-genai needs to open the folder.

    Its type `llama` stands for any graph with these inputs; what else differs between families is inside the graph.

    Source: https://onnxruntime.ai/docs/genai/reference/config.html.
    """
    config = model.config
    kv_heads, head_dim = cache_heads(config)
    cache = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    present = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    decoder = {
        "filename": "model.onnx",
        "session_options": {"provider_options": []},
        "head_size": head_dim,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": config.num_layers,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids", **cache},
        "outputs": {"logits": "logits", **present},
    }
    sizes = {"type": "llama", "vocab_size": model.vocab_size, "context_length": config.max_positions}
    search = {"do_sample": False, "max_length": config.max_positions, "past_present_share_buffer": False}
    return {"model": {**sizes, **ids, "decoder": decoder}, "search": search}
