"""What llama.cpp makes of a GGUF file: `python llama_cpp.py FILE` reads questions as JSON lines and answers each with one."""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


def main(path: str) -> None:
    """`ids`: logits of every position and greedy tokens behind them. `text`: how it is split. `facts`: metadata."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain() -> llama_cpp.llama_model_params:
        """Without weights repacked for AMX, which a sandbox may deny a process."""
        settings = defaults()
        settings.use_extra_bufts = False
        return settings

    llama_cpp.llama_cpp.llama_model_default_params = plain
    whole = llama_cpp.GGML_TYPE_F32  # of keys and values, which it otherwise halves
    model = llama_cpp.Llama(path, n_ctx=128, n_threads=1, logits_all=True, type_k=whole, type_v=whole, verbose=False)
    for line in sys.stdin:
        print(json.dumps(answer(model, json.loads(line))), flush=True)


def answer(model: llama_cpp.Llama, question: dict) -> object:
    if "text" in question:
        return model.tokenize(question["text"].encode(), add_bos=False, special=False)
    if "facts" in question:
        return {name: model.metadata[name] for name in question["facts"]}
    model.reset()
    model.eval(question["ids"])
    logits = np.array(model.scores[: model.n_tokens])
    written = []
    for _ in range(question["tokens"]):
        written.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(written[-1:])
    return {"logits": logits.tolist(), "written": written}


if __name__ == "__main__":
    main(sys.argv[1])
