"""llama.cpp on our GGUF file: every prompt is a sequence of one shared batch, as its own server does it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import llama_cpp as llama
import numpy as np
from serving import given, measure

case = given()
kind = {"": "f32", "int8": "q8_0"}[case["kind"]]
llama.llama_backend_init()
settings = llama.llama_model_default_params()
settings.use_extra_bufts = False  # its AMX kernels end in a segmentation fault where a sandbox forbids tiles
model = llama.llama_model_load_from_file(str(Path(case["folder"]) / f"{kind}.gguf").encode(), settings)
vocabulary = llama.llama_model_get_vocab(model)
vocab_size = llama.llama_vocab_n_tokens(vocabulary)
silent = [id for id in range(vocab_size) if llama.llama_vocab_is_control(vocabulary, id)]
batch = llama.llama_batch_init(512, 0, 1)


@cache
def opened(streams: int) -> llama.llama_context_p:
    """A context for that many sequences of the longest round that has them."""
    longest = max(len(each["prompts"][0]) + each["tokens"] for each in case["rounds"] if len(each["prompts"]) == streams)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = streams * longest, streams, 512, 512
    params.n_threads = params.n_threads_batch = case["threads"]
    params.kv_unified = streams == 1
    if kind == "f32":
        params.type_k = params.type_v = llama.GGML_TYPE_F32
    return llama.llama_init_from_model(model, params)


def run(context: llama.llama_context_p, items: list[tuple[int, int, int, bool]]) -> dict[int, int]:
    """One call of the model on (sequence, place, id, wanted); the likeliest next id of every sequence that is wanted."""
    batch.n_tokens = len(items)
    for index, (sequence, place, id, wanted) in enumerate(items):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = id, place, 1
        batch.seq_id[index][0], batch.logits[index] = sequence, wanted
    if llama.llama_decode(context, batch):
        raise RuntimeError("llama_decode failed")
    chosen = {}
    for index, (sequence, _, _, wanted) in enumerate(items):
        if wanted:
            logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, index), shape=(vocab_size,))
            logits[silent] = -np.inf
            chosen[sequence] = int(logits.argmax())
    return chosen


def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Ids of every prompt's continuation."""
    context = opened(len(prompts))
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    reading = [(row, place, id, place == len(prompt) - 1) for row, prompt in enumerate(prompts) for place, id in enumerate(prompt)]
    fresh: dict[int, int] = {}
    for start in range(0, len(reading), 512):
        fresh |= run(context, reading[start : start + 512])
    written = [[fresh[row]] for row in range(len(prompts))]
    for step in range(tokens - 1):
        fresh = run(context, [(row, len(prompt) + step, written[row][-1], True) for row, prompt in enumerate(prompts)])
        for row, id in fresh.items():
            written[row].append(id)
    return written


measure(case, generate)
