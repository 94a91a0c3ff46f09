"""Stage export: a trained model as folders that other programs open, proven to answer alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llm.artifact import write_json
from llm.data.tokenizer import find
from llm.errors import DataError
from llm.export import huggingface, onnx, parity
from llm.export.config import ExportConfig
from llm.model.decoder import Decoder
from llm.model.weights import load
from llm.serve.engine.session import Session
from llm.serve.models.folder import open_folder


def export(trained: Path, tokenized: Path, out: Path, config: ExportConfig, *, card: dict[str, Any]) -> dict[str, Any]:
    """Write `huggingface/`, `onnx/` and `parity.json`; the return value is parity.json's content.

    Raises: DivergenceError if a written folder doesn't answer as the trained model does.
    """
    model = load(trained).float()
    tokenizer_model = find(tokenized)
    for name in ("huggingface", "onnx"):
        (out / name).mkdir()
    huggingface.write(model, tokenizer_model, out / "huggingface", card=card)
    onnx.write(model, tokenizer_model, out / "onnx", config)
    session = Session(open_folder(out / "onnx"))
    result = parity.check(model, session, prompts(tokenized, model, config), config)
    write_json(out / "parity.json", result)
    return result


def prompts(tokenized: Path, model: Decoder, config: ExportConfig) -> list[list[int]]:
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
