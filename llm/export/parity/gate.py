"""The gate of export: the graphs that will be served answer as the trained model does.

The reference is always the plainest way to compute a logit, one unpadded row from its first token without a
cache, so that a mistake in cache, padding or positions can't hide in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm.errors import DivergenceError
from llm.export.config import ExportConfig
from llm.export.parity import causal, encoder, seq2seq

Prompts = list[list[int]]
Check = Callable[[Any, Path, Prompts], dict[str, float]]
Agreement = Callable[[Any, Path, Prompts, int, float], dict[str, int]]

DIFFERENCES: Mapping[str, Check] = {
    "decoder": causal.differences,
    "gpt2": causal.differences,
    "moe": causal.differences,
    "encoder": encoder.differences,
    "electra": encoder.differences,
    "encoder_decoder": seq2seq.differences,
}
AGREEMENT: Mapping[str, Agreement] = {  # of those that write
    "decoder": causal.agreement,
    "gpt2": causal.agreement,
    "moe": causal.agreement,
    "encoder_decoder": seq2seq.agreement,
}


def check(model: Any, folder: Path, prompts: Prompts, config: ExportConfig) -> dict[str, Any]:
    """Measure the largest logit difference of a folder's graphs, and compare greedy tokens of a model that writes.

    Raises: DivergenceError if either is beyond what `config` allows, or if no greedy token could be compared.
    """
    architecture = model.config.architecture
    by_shape = DIFFERENCES[architecture](model, folder, prompts)
    difference = max(by_shape.values(), key=lambda value: (value != value, value))  # not-a-number is the worst
    if not difference <= config.max_logit_difference:
        remedy = f"more than export.max_logit_difference {config.max_logit_difference}; the export is wrong or its operators are imprecise"
        raise DivergenceError("exported graph differs from PyTorch", value=by_shape, remedy=remedy)
    found: dict[str, Any] = {"max_logit_difference": difference, "max_logit_difference_by_shape": by_shape}
    if architecture in AGREEMENT:
        counts = AGREEMENT[architecture](model, folder, prompts, config.greedy_tokens, 2 * difference)
        found |= {"greedy_tokens_equal": True, "greedy_prompts": len(prompts)} | counts
    return found
