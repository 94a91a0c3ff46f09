"""The `export` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm.config import Section

Kind = Literal["fp16", "int8", "q4", "quantized", "calibrated"]
GgufKind = Literal["f32", "f16", "q8_0"]


class Gate(Section):
    """What a variant may lose on test text against the trained model, by each of its heads; see llm/export/exams for what is asked."""

    max_perplexity_increase: float = Field(gt=0, description="as a share: 0.005 is half a per cent")
    min_greedy_agreement: float = Field(ge=0, le=1, description="share of places at which both find the same answer likeliest")
    max_logit_difference: float | None = Field(default=None, gt=0, description="largest |variant - PyTorch| logit; unset: any")


class Gates(Section):
    """One gate per variant and kind of GGUF file. How often the likeliest token is another depends on how sure the model is of it."""

    fp16: Gate = Gate(max_perplexity_increase=0.001, min_greedy_agreement=0.98, max_logit_difference=0.1)
    int8: Gate = Gate(max_perplexity_increase=0.005, min_greedy_agreement=0.9)
    q4: Gate = Gate(max_perplexity_increase=0.03, min_greedy_agreement=0.5)
    quantized: Gate = Gate(max_perplexity_increase=0.005, min_greedy_agreement=0.8)
    calibrated: Gate = Gate(max_perplexity_increase=0.005, min_greedy_agreement=0.8)
    f32: Gate = Gate(max_perplexity_increase=1e-6, min_greedy_agreement=1.0, max_logit_difference=1e-5)
    f16: Gate = Gate(max_perplexity_increase=0.001, min_greedy_agreement=0.98, max_logit_difference=0.1)
    q8_0: Gate = Gate(max_perplexity_increase=0.005, min_greedy_agreement=0.9)


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
    variants: tuple[Kind, ...] = Field(default=("int8",), description="smaller graphs to write beside each float32 graph")
    variant_tokens: int = Field(default=8_192, ge=2, description="tokens of the test split that each is judged by")
    gates: Gates = Gates()
    gguf: tuple[GgufKind, ...] = Field(default=(), description="files for llama.cpp to write; decoder and gpt2 only")
