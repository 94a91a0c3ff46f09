"""The layout of transformers.js: a model's configuration and tokenizer, and its graphs in a folder `onnx` beside them.

So the export artifact itself is what `from_pretrained` takes, and no weights are stored twice.

Source: https://huggingface.co/docs/transformers.js/custom_usage.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from llm.artifact import write_json

COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def write(out: Path) -> None:
    """Put what describes the graphs of `out/onnx` beside that folder."""
    for name in COPIED:
        if (out / "onnx" / name).is_file():
            shutil.copyfile(out / "onnx" / name, out / name)
    config = json.loads((out / "onnx" / "config.json").read_text(encoding="utf-8"))
    beside = {path.name.removesuffix("_data"): 1 for path in sorted((out / "onnx").glob("*.onnx_data"))}
    if beside:  # files of weights that a browser, which can't list a folder, has to ask for
        config["transformers.js_config"] = {"use_external_data_format": beside}
    write_json(out / "config.json", config)
