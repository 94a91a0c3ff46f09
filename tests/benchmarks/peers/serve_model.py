"""Writes the models that R7 serves: trained for some minutes on the standard library, or with random weights of SmolLM2-135M's sizes."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from llm.data.config import TokenizeConfig
from llm.data.tokenizer import Tokenizer, train
from llm.export import gguf, huggingface
from llm.export import onnx as onnx_export
from llm.export.blockwise import blockwise
from llm.export.config import ExportConfig
from llm.export.parity import gate
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder

ROWS = 2  # of a step: 200 steps take two to three minutes on two cores
CARD: dict[str, Any] = {"name": "serving", "metadata": {}, "facts": {}, "properties": {}}


def texts(most: int | None) -> list[str]:
    """Sources of the standard library."""
    return [path.read_text(errors="ignore") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:most]]


def learn(model: Decoder, tokens: np.ndarray, steps: int) -> None:
    """Steps of AdamW on rows of 256 tokens, the learning rate falling to nothing."""
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=1e-3), np.random.default_rng(0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        starts = rng.integers(0, len(tokens) - 257, ROWS)
        rows = torch.from_numpy(np.stack([tokens[start : start + 257] for start in starts]))
        loss = F.cross_entropy(model.head(model.features(rows[:, :-1])).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"{steps} steps, last loss {loss.item():.2f}", file=sys.stderr)


folder, sizes, vocab_size, steps = json.loads(sys.argv[1]).values()
torch.manual_seed(0)
out = Path(folder)
out.mkdir(parents=True, exist_ok=True)
sources = texts(80 if steps else None)  # a model that learns nothing here has the larger vocabulary
(out / "tokenizer.model").write_bytes(train(sources, TokenizeConfig(vocab_size=vocab_size, row_tokens=32)))
tokenizer = Tokenizer.load(out / "tokenizer.model")
model = Decoder(DecoderConfig(**sizes), vocab_size)
if steps:
    learn(model, np.array([id for text in sources for id in tokenizer.document_ids(text)]), steps)
model.eval()
for name in ("onnx", "huggingface"):
    (out / name).mkdir(exist_ok=True)
onnx_export.write(model, out / "tokenizer.model", out / "onnx", ExportConfig())
for name, bits in (("int8", 8), ("q4", 4)):
    onnx.save(blockwise(onnx.load(out / "onnx" / "model.onnx"), bits=bits), out / "onnx" / f"model_{name}.onnx")
text = np.array([id for text in sources[:40] for id in tokenizer.document_ids(text)])
found = gate.check(model, out / "onnx", [text[:512].tolist(), text[1024:1152].tolist()], ExportConfig(greedy_tokens=16))
(out / "parity.json").write_text(json.dumps(found))
huggingface.write(model, out / "tokenizer.model", out / "huggingface", card=CARD)
for kind in ("f32", "q8_0"):
    gguf.write(model, out / "tokenizer.model", out / f"{kind}.gguf", kind, name="serving")
np.save(out / "text.npy", text)
