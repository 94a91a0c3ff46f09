"""Parity of a model that reads to both sides: single rows, rows of two segments, a padded batch."""

from __future__ import annotations

from pathlib import Path

import torch

from llm.export.parity.compare import largest, padded, shortened
from llm.export.parity.loaded import Arrays, Loaded
from llm.model.electra import Electra
from llm.model.encoder import Encoder


def differences(model: Encoder | Electra, folder: Path, prompts: list[list[int]]) -> dict[str, float]:
    """Largest difference of any output, logits or hidden states, by the shape that a pass has."""
    graph = Loaded(folder / "model.onnx")
    return {
        "single": max(_difference(model, graph, [prompt], segments=False) for prompt in prompts),
        "segments": max(_difference(model, graph, [prompt], segments=True) for prompt in prompts),
        "padded_batch": _difference(model, graph, shortened(prompts), segments=True),
    }


def _difference(model: Encoder | Electra, graph: Loaded, rows: list[list[int]], *, segments: bool) -> float:
    """Largest difference over the real positions of a batch; `segments` puts the second half of a row into another one."""
    ids, mask = padded(rows)
    kinds, _ = padded([_segments(model, len(row), segments) for row in rows])
    found = graph({"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds})
    return max(
        largest(expected - found[name][row][: len(expected)])
        for row, tokens in enumerate(rows)
        for name, expected in reference(model, tokens, _segments(model, len(tokens), segments)).items()
    )


def _segments(model: Encoder | Electra, length: int, wanted: bool) -> list[int]:
    second = 1 if wanted and model.config.num_segments > 1 else 0
    return [second * (place >= length // 2) for place in range(length)]


@torch.inference_mode()
def reference(model: Encoder | Electra, tokens: list[int], segments: list[int]) -> Arrays:
    """PyTorch's outputs for one row, under the graph's names."""
    tokens_BT, segments_BT = (torch.tensor([row], device=model.embedding.weight.device) for row in (tokens, segments))
    x_BTD = model.encode(tokens_BT, segments_BT)
    found = {"logits": model(tokens_BT, segments_BT), "last_hidden_state": x_BTD}
    if isinstance(model, Encoder) and model.next_sentence is not None:
        found["seq_relationship_logits"] = model.follows(x_BTD)
    return {name: value[0].float().cpu().numpy() for name, value in found.items()}
