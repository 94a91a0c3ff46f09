"""A model as a folder for onnxruntime: its graphs, what other programs need to open them, and the tokenizer.

architecture      files                                            opened by
decoder, gpt2,    model.onnx, genai_config.json                    optimum's ORTModelForCausalLM, onnxruntime-genai,
moe                                                                transformers.js, `trainyard serve`
encoder, electra  model.onnx                                       optimum's ORTModelForMaskedLM and …FeatureExtraction
encoder_decoder   encoder_model.onnx, decoder_model_merged.onnx    optimum's ORTModelForSeq2SeqLM, transformers.js
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm.artifact import sha256_file, write_json
from llm.data.tokenizer import find
from llm.export.config import ExportConfig
from llm.export.graphs import causal, encoder, seq2seq
from llm.export.graphs.trace import Graph, write_graph
from llm.export.huggingface import special_ids, write_config
from llm.export.huggingface_config import document
from llm.export.tokenizer import write_tokenizer
from llm.model.config import ModelConfig, MoeConfig

GRAPHS: Mapping[str, Callable[[Any], dict[str, Graph]]] = {
    "decoder": causal.graphs,
    "gpt2": causal.graphs,
    "moe": causal.graphs,
    "encoder": encoder.graphs,
    "electra": encoder.graphs,
    "encoder_decoder": seq2seq.graphs,
}
PACKAGES = ("trainyard", "torch", "onnx", "onnxscript")


def write(model: Any, tokenizer_model: Path, folder: Path, config: ExportConfig, properties: Mapping[str, str] | None = None) -> None:
    """Write the graphs of a model, config.json, genai_config.json where there is a cache, and the tokenizer's files.

    `properties` are facts on the model's origin; with the tokenizer's hash and the exporter's versions they become the
    graphs' metadata.

    Raises: ArtifactError if a graph that comes out is not valid ONNX.
    """
    told = {**(properties or {}), **made_with(tokenizer_model)}
    for name, graph in GRAPHS[model.config.architecture](model).items():
        write_graph(graph, folder / name, config, told)
    ids = special_ids(tokenizer_model, model.config)
    write_config(folder, _sizes(model, ids), model.config, ids)
    if is_causal(model.config):
        write_json(folder / "genai_config.json", causal.genai_config(model, ids))
    write_tokenizer(tokenizer_model, folder, model.config, model.vocab_size)


def is_causal(config: ModelConfig) -> bool:
    """Whether the model writes text token by token from one graph with a cache."""
    return GRAPHS[config.architecture] is causal.graphs


def made_with(tokenizer_model: Path) -> dict[str, str]:
    """Which tokenizer a graph's ids are of, and which versions wrote it."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"trainyard.tokenizer_sha256": sha256_file(find(tokenizer_model)), "trainyard.versions": json.dumps(versions)}


def _sizes(model: Any, ids: dict[str, Any]) -> dict[str, Any]:
    """config.json beside a graph, of which readers take sizes alone: what the model computes is in the graph."""
    config = model.config
    if isinstance(config, MoeConfig):  # of the mixtures that optimum knows, Qwen3-MoE has grouped heads
        config = config.model_copy(update={"qk_norm": True})
    written = document(config, model.vocab_size, ids)
    if not is_causal(config):
        return written
    kv_heads, head_dim = causal.cache_heads(config)
    cache = {"num_hidden_layers": config.num_layers, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    return {**written, **cache, "max_position_embeddings": config.max_positions}
