"""The `model` section of a recipe: one section per architecture, told apart by `model.architecture`.

`vocab_size` comes from `tokenize`, so it isn't repeated here. Published sizes stand in deployments/recipes/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from llm.config import Section

ARCHITECTURES = ("decoder", "gpt2", "moe", "encoder", "encoder_decoder", "electra")


class RopeScaling(Section):
    """How rotary positions are stretched beyond the length that the model was first trained on."""

    kind: Literal["llama3", "linear"] = "llama3"
    factor: float = Field(ge=1)
    low_freq_factor: float = Field(default=1.0, gt=0, description="llama3: slower waves than this many per original length are stretched")
    high_freq_factor: float = Field(default=4.0, gt=0, description="llama3: faster waves than this stay as they are")
    original_max_positions: int = Field(default=8192, ge=8)

    @model_validator(mode="after")
    def _ordered(self) -> RopeScaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}; set it lower")
        return self


class LlamaSizes(Section):
    """What the dense decoder and the mixture of experts share: Llama's attention, norms and feed-forward width."""

    width: int = Field(ge=8, description="D, the model width")
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1, description="H, query heads")
    num_kv_heads: int = Field(ge=1, description="K, key and value heads; fewer than num_heads is grouped-query attention")
    head_dim: int | None = Field(default=None, ge=2, description="C, width of one head; unset is width / num_heads")
    ffn_width: int = Field(ge=8, description="F, inner width of the feed-forward block, or of one expert")
    max_positions: int = Field(default=2048, ge=8, description="longest sequence that the model is told to handle")
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = Field(default=1e-5, gt=0)
    qk_norm: bool = Field(default=False, description="RMSNorm of every query and key head before rotation (Qwen3)")
    attention_bias: bool = Field(default=False, description="bias on queries, keys and values (Qwen2)")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    tied_embeddings: bool = True

    @model_validator(mode="after")
    def _divides(self) -> LlamaSizes:
        if self.head_dim is None:
            _check_heads(self.width, self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}; set model.num_kv_heads to a divisor"
            )
        head_width = self.head_dim or self.width // self.num_heads
        if head_width % 2:
            remedy = "set model.head_dim to an even number" if self.head_dim else "set model.width to an even multiple of heads"
            raise ValueError(f"head width {head_width} is odd, which RoPE can't rotate; {remedy}")
        return self


class DecoderConfig(LlamaSizes):
    """Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    architecture: Literal["decoder"] = "decoder"


class MoeConfig(LlamaSizes):
    """Mixture of experts: Llama's attention, and in every layer `num_experts` feed-forward nets of which a token visits a few."""

    architecture: Literal["moe"] = "moe"
    num_experts: int = Field(ge=2, description="E, routed experts in every layer")
    experts_per_token: int = Field(ge=1)
    num_shared_experts: int = Field(default=0, ge=0, description="experts that every token visits")
    router: Literal["softmax", "sigmoid"] = "softmax"
    normalised_shares: bool = Field(default=True, description="a token's shares of its experts sum to 1")
    balance: Literal["auxiliary", "bias", "none"] = Field(default="auxiliary", description="bias: selection bias, without auxiliary loss")
    balance_weight: float = Field(default=0.01, ge=0, description="of the auxiliary loss, with balance: auxiliary")
    bias_rate: float = Field(default=0.001, gt=0, description="change of the selection bias per step, with balance: bias")
    z_weight: float = Field(default=0.001, ge=0, description="of the router's z-loss")
    capacity_factor: float | None = Field(default=None, gt=0, description="tokens an expert takes, in even shares; unset drops none")

    @model_validator(mode="after")
    def _chooses(self) -> MoeConfig:
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token {self.experts_per_token} exceeds num_experts {self.num_experts}; set model.experts_per_token lower"
            )
        return self


class Gpt2Config(Section):
    """GPT-2: learned positions, LayerNorm, GELU, biases."""

    architecture: Literal["gpt2"] = "gpt2"
    width: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_width: int = Field(ge=8)
    max_positions: int = Field(default=1024, ge=8)
    norm_epsilon: float = Field(default=1e-5, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    tied_embeddings: bool = True

    @model_validator(mode="after")
    def _divides(self) -> Gpt2Config:
        _check_heads(self.width, self.num_heads)
        return self


class EncoderConfig(Section):
    """BERT: attention in both directions, learned positions and segments, a head for masked tokens."""

    architecture: Literal["encoder"] = "encoder"
    width: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_width: int = Field(ge=8)
    embedding_width: int | None = Field(default=None, ge=8, description="narrower embeddings, projected to the width; unset is the width")
    max_positions: int = Field(default=512, ge=8)
    num_segments: int = Field(default=2, ge=1)
    norm_epsilon: float = Field(default=1e-12, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    next_sentence: bool = Field(default=False, description="a second head that tells whether two segments follow each other")
    tied_embeddings: bool = True

    @model_validator(mode="after")
    def _divides(self) -> EncoderConfig:
        _check_heads(self.width, self.num_heads)
        return self


class EncoderDecoderConfig(Section):
    """T5: an encoder, and a decoder that reads it; positions are relative and only in the attention."""

    architecture: Literal["encoder_decoder"] = "encoder_decoder"
    width: int = Field(ge=8)
    num_layers: int = Field(ge=1, description="layers of the encoder")
    num_decoder_layers: int | None = Field(default=None, ge=1, description="unset is num_layers")
    num_heads: int = Field(ge=1)
    head_dim: int | None = Field(default=None, ge=1, description="C, width of one head; unset is width / num_heads")
    ffn_width: int = Field(ge=8)
    feed_forward: Literal["gated_gelu", "relu"] = Field(default="gated_gelu", description="T5 v1.1 or the first T5")
    relative_buckets: int = Field(default=32, ge=4, multiple_of=4)
    relative_max_distance: int = Field(default=128, ge=8)
    max_positions: int = Field(default=512, ge=8, description="longest sequence; the architecture itself sets no bound")
    norm_epsilon: float = Field(default=1e-6, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    tied_embeddings: bool = Field(default=False, description="head is the embedding, its input scaled by 1/sqrt(width)")

    @model_validator(mode="after")
    def _divides(self) -> EncoderDecoderConfig:
        if self.head_dim is None:
            _check_heads(self.width, self.num_heads)
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance {self.relative_max_distance} leaves no far buckets; set model.relative_max_distance higher"
            )
        return self


class GeneratorSizes(Section):
    """ELECTRA's small masked language model, which shares its embeddings with the discriminator."""

    width: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_width: int = Field(ge=8)

    @model_validator(mode="after")
    def _divides(self) -> GeneratorSizes:
        _check_heads(self.width, self.num_heads, "model.generator")
        return self


class ElectraConfig(Section):
    """ELECTRA: the sizes are the discriminator's, which is the model that is kept."""

    architecture: Literal["electra"] = "electra"
    width: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_width: int = Field(ge=8)
    embedding_width: int = Field(ge=8, description="width of the embeddings that generator and discriminator share")
    generator: GeneratorSizes
    max_positions: int = Field(default=512, ge=8)
    num_segments: int = Field(default=2, ge=1)
    norm_epsilon: float = Field(default=1e-12, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self) -> ElectraConfig:
        _check_heads(self.width, self.num_heads)
        return self


def _check_heads(width: int, num_heads: int, section: str = "model") -> None:
    if width % num_heads:
        raise ValueError(f"num_heads {num_heads} does not divide width {width}; set {section}.num_heads to a divisor")


def _architecture(value: Any) -> Any:
    """The architecture that a section names, checked or not; one without the key is a decoder."""
    return value.get("architecture", "decoder") if isinstance(value, Mapping) else getattr(value, "architecture", None)


ModelConfig = Annotated[
    Annotated[DecoderConfig, Tag("decoder")]
    | Annotated[Gpt2Config, Tag("gpt2")]
    | Annotated[MoeConfig, Tag("moe")]
    | Annotated[EncoderConfig, Tag("encoder")]
    | Annotated[EncoderDecoderConfig, Tag("encoder_decoder")]
    | Annotated[ElectraConfig, Tag("electra")],
    Discriminator(
        _architecture,
        custom_error_type="unknown_architecture",
        custom_error_message=f"unknown architecture; set model.architecture to one of {', '.join(ARCHITECTURES)}",
    ),
]
_SECTION: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


def parse_model(document: Any) -> ModelConfig:
    """The section of the architecture that a document names.

    Raises: pydantic.ValidationError if a key is unknown, missing or wrong.

    Example:
        >>> parse_model({"architecture": "gpt2", "width": 64, "num_layers": 2, "num_heads": 4, "ffn_width": 256}).max_positions
        1024
    """
    return _SECTION.validate_python(document)
