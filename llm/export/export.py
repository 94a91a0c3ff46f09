"""Stage export: a trained model as folders that other programs open, proven to answer alike.

Heads and adapters, which fine-tuning makes, belong in `onnx.GRAPHS` and `huggingface_config.WRITERS` beside the families.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llm.artifact import write_json
from llm.data.tokenizer import find
from llm.errors import DataError, RecipeError
from llm.export import gguf, huggingface, onnx, transformersjs, variants
from llm.export.card import write_card
from llm.export.config import ExportConfig
from llm.export.parity import gate
from llm.export.tokenizer import read_tokenizer
from llm.model.weights import load, save


def export(trained: Path, tokenized: Path, out: Path, config: ExportConfig, *, card: dict[str, Any]) -> dict[str, Any]:
    """Write `onnx/`, `huggingface/`, the layout of transformers.js, what else `config` asks for, and `parity.json`, which it returns.

    Where transformers has no class that computes the model, `weights/` stands in for `huggingface/`: the model in
    Trainyard's own layout, so that it can be scored again. See llm/export/card.py for `card`.

    Raises: DivergenceError if a written graph doesn't answer as the trained model does.
    """
    model = load(trained).float()
    tokenizer_model = find(tokenized)
    folder = _made(out / "onnx")
    onnx.write(model, tokenizer_model, folder, config, card.get("properties"))
    result = gate.check(model, folder, prompts(tokenized, model, config), config)
    rows: list[dict[str, object]] = []
    if config.variants:
        result["variants"], speeds = variants.export(model, tokenized, folder, config)
        write_json(_made(out / "log") / "speed.json", {"tokens_per_second": speeds})
        rows = [{"file": facts["file"], **_quality(facts)} for facts in result["variants"].values()]
    card, result["huggingface"] = _publish(model, tokenizer_model, out, card)
    write_card(model, folder, card, rows, library="optimum")
    transformersjs.write(out)
    if config.gguf:
        result["gguf"] = gguf.export(model, tokenizer_model, tokenized, _made(out / "gguf"), config, name=card["name"])
    write_json(out / "parity.json", result)
    return result


def _publish(model: Any, tokenizer_model: Path, out: Path, card: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Write the Hugging Face folder if there can be one; a card that says why if not."""
    folder = _made(out / "huggingface")
    try:
        huggingface.write(model, tokenizer_model, folder, card=card)
        return card, True
    except RecipeError as error:
        folder.rename(out / "weights")
        save(model, out / "weights")
        read_tokenizer(tokenizer_model).save(out / "weights")
        return {**card, "limits": [*card.get("limits", ()), f"There is no Hugging Face folder: {error}."]}, False


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _quality(facts: dict[str, Any]) -> dict[str, object]:
    return {
        "megabytes": f"{facts['bytes'] / 1e6:.1f}",
        "perplexity": f"{100 * facts['perplexity_increase']:+.2f} %",
        "same answer": f"{100 * facts['greedy_agreement']:.1f} %",
    }


def prompts(tokenized: Path, model: Any, config: ExportConfig) -> list[list[int]]:
    """Openings of rows of the test split, evenly spread and of different lengths.

    Raises: DataError if the split can't fill one prompt.
    """
    rows = json.loads((tokenized / "rows.json").read_text(encoding="utf-8"))
    stream = np.memmap(tokenized / "test.tokens", dtype=rows["dtype"], mode="r")
    longest = min(config.prompt_tokens, model.config.max_positions // 2, len(stream))
    if longest < 2:
        raise DataError("test split is too short for a prompt", value=f"{len(stream)} tokens", remedy="raise dedup.test_share")
    starts = np.linspace(0, len(stream) - longest, config.prompts).astype(int)
    lengths = np.linspace(longest, max(2, longest // 3), config.prompts).astype(int)
    return [stream[start : start + length].tolist() for start, length in zip(starts, lengths, strict=True)]
