"""How one model is held in memory and shared among requests."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from llm.config import Section


class EngineConfig(Section):
    """Sizes of one engine."""

    variant: str = Field(default="", pattern=r"^[a-z0-9]*$", description="empty: model.onnx; else model_<variant>.onnx")
    threads: int = Field(default=0, ge=0, description="threads of one step; 0 takes all cores")
    slots: int = Field(default=16, ge=1, le=1024, description="generations that run at once")
    kv_tokens: int = Field(
        default=0,
        ge=0,
        description="tokens whose keys and values fit in memory; 0: slots × context, or what 80 % of what is free holds beside kept ones",
    )
    queue_requests: int = Field(
        default=256,
        ge=0,
        description="generations that may wait, beside those that begin at once; a client (key or address) holds half, if it is alone",
    )
    prefill_tokens: int = Field(default=256, ge=1, description="prompt tokens read between two decoding steps")
    prefix_tokens: int = Field(
        default=16384,
        ge=0,
        description="tokens of finished texts kept for prompts that begin alike; fewer if kv_tokens is 0 and memory is short",
    )
    draft: Path | None = Field(default=None, description="folder of a small model with the same tokenizer that writes ahead")
    draft_tokens: int = Field(default=4, ge=1, le=16, description="tokens that the draft writes ahead")
