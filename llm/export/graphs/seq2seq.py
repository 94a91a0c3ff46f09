"""An encoder–decoder as two graphs, in the names of optimum's ORTModelForSeq2SeqLM and transformers.js.

    encoder_model.onnx          input_ids, attention_mask [batch, encoder_sequence] → last_hidden_state [batch, encoder_sequence, width]
    decoder_model_merged.onnx   input_ids [batch, sequence], encoder_hidden_states, encoder_attention_mask,
                                past_key_values.{i}.decoder|encoder.key|value [batch, heads, past or past_encoder, head_dim]
                                → logits, present.{i}.decoder|encoder.key|value

Both programs look for the merged file first. The one that optimum writes picks one of two branches by a flag; this one has
a single branch that goes by lengths: while the past of the encoder's side is 0 long, keys and values are made of
`encoder_hidden_states`; afterwards they are taken as they come, and nothing of the encoder is multiplied again.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from llm.export.graphs.trace import Graph
from llm.model.encoder_decoder import Attention, DecoderBlock, EncoderBlock, EncoderDecoder, head_width, relative_bucket

KINDS = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")


def graphs(model: EncoderDecoder) -> dict[str, Graph]:
    """Both graphs, by file name."""
    return {"encoder_model.onnx": _encoder(model), "decoder_model_merged.onnx": _decoder(model)}


class PaddedEncoder(nn.Module):
    """The encoder's side; padding is not attended to."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        model = self.model
        places_S = torch.arange(input_ids.shape[1], device=input_ids.device)
        bias = relative_bias(model, places_S, places_S, both_sides=True).masked_fill(~_visible(attention_mask), float("-inf"))
        x_BSD = model.embedding(input_ids)
        for block in islice(cast(list[EncoderBlock], model.blocks), model.config.num_layers):
            normed_BSD = block.attention_norm(x_BSD)
            x_BSD = x_BSD + attended(block.attention, normed_BSD, keys_values(block.attention, normed_BSD), bias)
            x_BSD = x_BSD + block.feed_forward(block.feed_forward_norm(x_BSD))
        return model.encoder_norm(x_BSD)


class FlatCacheDecoder(nn.Module):
    """The decoder's side: the next tokens' logits, given what the encoder read and what was written before."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, memory_BMD: Tensor, encoder_attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        model = self.model
        visible_B1TM = _visible(encoder_attention_mask).expand(-1, -1, input_ids.shape[1], -1)  # onnxruntime repeats no mask by itself
        places_S = torch.arange(past[0].shape[2] + input_ids.shape[1], device=input_ids.device)
        places_T = places_S[past[0].shape[2] :]
        bias = relative_bias(model, places_T, places_S, both_sides=False).masked_fill(places_S > places_T[:, None], float("-inf"))
        unread_BMD = memory_BMD[:, past[2].shape[2] :]
        x_BTD, present = model.embedding(input_ids), []
        for layer, block in enumerate(islice(cast(list[DecoderBlock], model.blocks), model.config.num_layers, None)):
            own, cross = past[4 * layer : 4 * layer + 2], past[4 * layer + 2 : 4 * layer + 4]
            normed_BTD = block.attention_norm(x_BTD)
            own = extended(block.attention, own, normed_BTD)
            x_BTD = x_BTD + attended(block.attention, normed_BTD, own, bias)
            cross = extended(block.cross_attention, cross, unread_BMD)
            x_BTD = x_BTD + attended(block.cross_attention, block.cross_attention_norm(x_BTD), cross, visible_B1TM)
            x_BTD = x_BTD + block.feed_forward(block.feed_forward_norm(x_BTD))
            present += [*own, *cross]
        x_BTD = model.norm(x_BTD)
        return model.head(x_BTD * model.config.width**-0.5 if model.config.tied_embeddings else x_BTD), *present


def relative_bias(model: EncoderDecoder, queries_T: Tensor, keys_S: Tensor, *, both_sides: bool) -> Tensor:
    """What attention adds to its scores: 1, H, T, S."""
    config, buckets = model.config, model.encoder_positions if both_sides else model.decoder_positions
    distance_TS = keys_S - queries_T[:, None]
    bucket_TS = relative_bucket(distance_TS, config.relative_buckets, config.relative_max_distance, both_sides=both_sides)
    return buckets(bucket_TS).permute(2, 0, 1)[None]


def keys_values(attention: Attention, x_BTD: Tensor) -> list[Tensor]:
    """Keys and values of x: each B, H, T, C."""
    return [_heads(attention, attention.key(x_BTD)), _heads(attention, attention.value(x_BTD))]


def extended(attention: Attention, past: list[Tensor], x_BTD: Tensor) -> list[Tensor]:
    """Keys and values of the past, then those of x."""
    return [torch.cat(pair, dim=2) for pair in zip(past, keys_values(attention, x_BTD), strict=True)]


def attended(attention: Attention, x_BTD: Tensor, keys_and_values: list[Tensor], bias: Tensor) -> Tensor:
    """What the new tokens take from these keys and values."""
    query_BHTC, (keys, values) = _heads(attention, attention.query(x_BTD)), keys_and_values
    attended_BHTC = F.scaled_dot_product_attention(query_BHTC, keys, values, bias, scale=1.0)
    rows_BTHC = attended_BHTC.transpose(1, 2).clone(memory_format=torch.contiguous_format)  # flatten would keep one kernel's strides
    return attention.output(rows_BTHC.flatten(2))


def _heads(attention: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _visible(attention_mask_BS: Tensor) -> Tensor:
    return attention_mask_BS[:, None, None, :].bool()


def cache_names(prefix: str, num_layers: int) -> list[str]:
    """`prefix.0.decoder.key`, `prefix.0.decoder.value`, `prefix.0.encoder.key`, …"""
    return [f"{prefix}.{layer}.{kind}" for layer in range(num_layers) for kind in KINDS]


def decoder_layers(model: EncoderDecoder) -> int:
    """Layers of the decoder."""
    return model.config.num_decoder_layers or model.config.num_layers


def _encoder(model: EncoderDecoder) -> Graph:
    B, S = 2, 5
    inputs = tuple(torch.ones(B, S, dtype=torch.int64, device=model.embedding.weight.device) for _ in range(2))
    flat = {0: Dim("batch_size", max=2**15), 1: Dim("encoder_sequence", max=2**20)}
    return Graph(PaddedEncoder(model), inputs, (flat, flat), ["input_ids", "attention_mask"], ["last_hidden_state"])


def _decoder(model: EncoderDecoder) -> Graph:
    B, T, P, M, Q = 2, 3, 4, 7, 2  # no free axis is 0 or 1 long, which would freeze it
    config, device = model.config, model.embedding.weight.device
    batch, sequence, past = Dim("batch_size", max=2**15), Dim("sequence", max=2**20), Dim("past", min=0, max=2**20)
    memory, read = Dim("encoder_sequence", max=2**20), Dim("past_encoder", min=0, max=2**20)
    ids = torch.zeros(B, T, dtype=torch.int64, device=device)
    mask = torch.ones(B, M, dtype=torch.int64, device=device)
    layers, heads = decoder_layers(model), (config.num_heads, head_width(config))
    lengths = [P, P, Q, Q] * layers
    cache = [torch.zeros(B, heads[0], length, heads[1], device=device) for length in lengths]
    cache_shapes: list[Any] = [{0: batch, 2: past if length == P else read} for length in lengths]
    inputs = (ids, torch.zeros(B, M, config.width, device=device), mask, cache)
    shapes = ({0: batch, 1: sequence}, {0: batch, 1: memory}, {0: batch, 1: memory}, cache_shapes)
    names = ["input_ids", "encoder_hidden_states", "encoder_attention_mask", *cache_names("past_key_values", layers)]
    present = cache_names("present", layers)
    read_axes: list[str | int] = ["batch_size", heads[0], "encoder_sequence", heads[1]]
    axes = {name: read_axes for name in present if ".encoder." in name}
    return Graph(FlatCacheDecoder(model), inputs, shapes, names, ["logits", *present], axes)
