"""The `model` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm.config import Section


class ModelConfig(Section):
    """Sizes of a model. `vocab_size` comes from `tokenize`, so it isn't repeated here."""

    architecture: Literal["decoder"] = "decoder"
    width: int = Field(ge=8, description="D, the model width")
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1, description="H, query heads")
    num_kv_heads: int = Field(ge=1, description="K, key and value heads; fewer than num_heads is grouped-query attention")
    ffn_width: int = Field(ge=8, description="F, inner width of the feed-forward block")
    max_positions: int = Field(default=2048, ge=8, description="longest sequence that the model is told to handle")
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_epsilon: float = Field(default=1e-5, gt=0)
    tied_embeddings: bool = True

    @model_validator(mode="after")
    def _divides(self) -> ModelConfig:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}; set model.num_heads to a divisor")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}; set model.num_kv_heads to a divisor"
            )
        head_width = self.width // self.num_heads
        if head_width % 2:
            raise ValueError(f"head width {head_width} is odd, which RoPE can't rotate; set model.width to an even multiple of heads")
        return self
