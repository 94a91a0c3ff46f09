"""onnxruntime-genai's generator on our exported graph, prompts of one length as one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from serving import given, measure

case = given()
model = genai.Model(str(Path(case["folder"]) / "onnx"))


def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Ids of every prompt's continuation; a batch takes 32 at most."""
    if len(prompts) > 32:
        return generate(prompts[:32], tokens) + generate(prompts[32:], tokens)
    longest = len(prompts[0]) + tokens
    params = genai.GeneratorParams(model)
    params.set_search_options(batch_size=len(prompts), do_sample=False, min_length=longest, max_length=longest)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(prompts, np.int32))
    for _ in range(tokens):
        generator.generate_next_token()
    return [generator.get_sequence(row)[len(prompts[0]) :].tolist() for row in range(len(prompts))]


measure(case, generate)
