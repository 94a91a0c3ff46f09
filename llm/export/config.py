"""The `export` section of a recipe."""

from __future__ import annotations

from pydantic import Field

from llm.config import Section


class ExportConfig(Section):
    """How a trained model is written for others, and how closely the result must agree with PyTorch."""

    opset: int = Field(default=23, ge=23, le=24, description="ONNX operator set; 23 is the first with rotary and attention operators")
    max_logit_difference: float = Field(default=1e-3, gt=0, description="largest |ONNX - PyTorch| logit that passes, in float32")
    greedy_tokens: int = Field(default=64, ge=1, description="greedy tokens per prompt that must equal PyTorch's")
    prompts: int = Field(default=6, ge=1, description="prompts from the test split that the comparison uses")
    prompt_tokens: int = Field(default=48, ge=2, description="length of the longest of them; the others are shorter")
    external_data_bytes: int = Field(
        default=1_500_000_000,
        ge=0,
        lt=2**31,
        description="weights from this size on go to a file beside model.onnx (a graph ends at 2 GiB)",
    )
