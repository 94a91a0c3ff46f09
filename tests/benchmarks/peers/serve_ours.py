"""Trainyard's engine: all prompts are submitted at once, and read as they come."""

from __future__ import annotations

from pathlib import Path

from serving import given, measure

from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Sampling

case = given()
streams = max(len(each["prompts"]) for each in case["rounds"])
config = EngineConfig(threads=case["threads"], slots=streams, variant=case["kind"], prefix_tokens=0, prefill_tokens=512)
engine = Engine(Path(case["folder"]) / "onnx", model_id="m", config=config)


def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Ids of every prompt's continuation."""
    running = [engine.submit(prompt, Sampling(tokens, temperature=0, ignore_eos=True)) for prompt in prompts]
    return [[token.id for chunk in generation for token in chunk.tokens] for generation in running]


measure(case, generate)
engine.close()
