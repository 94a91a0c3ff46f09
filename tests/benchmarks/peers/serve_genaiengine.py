"""onnxruntime-genai's engine, which batches requests as they come, on our exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from serving import given, measure

case = given()
engine = genai.Engine(genai.Model(str(Path(case["folder"]) / "onnx")))
buffer = engine.create_event_buffer(256)


def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Ids of every prompt's continuation."""
    written: dict[int, list[int]] = {}
    requests = []
    for prompt in prompts:
        request = engine.create_request()
        options = genai.TurnOptions(request)
        options.set_do_sample(False)
        options.set_min_generated_tokens(tokens)
        options.set_max_generated_tokens(tokens)
        request.begin_turn(np.array(prompt, np.int32), options)
        requests.append(request)
        written[id(request)] = []
    while engine.has_pending_requests():
        for event in engine.run(buffer):
            if event.flags & genai.EngineEventFlags.TOKEN:
                written[id(event.request)].append(int(event.token))
    for request in requests:
        request.close()
    return list(written.values())


measure(case, generate)
