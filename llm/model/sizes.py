"""How many numbers a model trains, by arithmetic: what a plan needs before torch is imported or a byte is allocated.

Letters as in llm/model/decoder.py.
"""

from __future__ import annotations

from typing import Any

from llm.model.config import (
    DecoderConfig,
    ElectraConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    GeneratorSizes,
    Gpt2Config,
    LlamaSizes,
    ModelConfig,
    MoeConfig,
)

HOW_IT_TRAINS = {
    "dropout",
    "balance",
    "balance_weight",
    "bias_rate",
    "z_weight",
    "capacity_factor",
    "generator",
}  # a public checkpoint may not say
POSITIONS = {"max_positions", "rope_theta", "rope_scaling"}  # of rotary models, which may be stretched


def parameters(config: ModelConfig, vocab_size: int) -> int:
    """Trainable numbers, a tied matrix counted once.

    Example:
        >>> gpt2 = Gpt2Config(width=768, num_layers=12, num_heads=12, ffn_width=3072)
        >>> parameters(gpt2, 50_257)
        124439808
    """
    match config:
        case DecoderConfig() | MoeConfig():
            experts = config.num_experts if isinstance(config, MoeConfig) else 0
            return _llama(config, vocab_size, experts)
        case Gpt2Config():
            vectors = (vocab_size * (1 if config.tied_embeddings else 2) + config.max_positions) * config.width
            return vectors + config.num_layers * _biased_layer(config) + 2 * config.width
        case EncoderConfig():
            return _encoder(config, vocab_size)
        case EncoderDecoderConfig():
            return _encoder_decoder(config, vocab_size)
        case ElectraConfig():
            return _electra(config, vocab_size)


def active_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Numbers that one token meets: of a mixture's routed experts only those that it visits."""
    if isinstance(config, MoeConfig):
        return _llama(config, vocab_size, config.experts_per_token)
    return parameters(config, vocab_size)


def _llama(config: LlamaSizes, vocab_size: int, experts: int) -> int:
    """A Llama-style decoder, or a mixture of which so many routed experts count."""
    D, H, K, C = config.width, config.num_heads, config.num_kv_heads, config.head_dim or config.width // config.num_heads
    attention = 2 * D * C * (H + K) + config.attention_bias * C * (H + 2 * K) + config.qk_norm * 2 * C
    one_net = 3 * D * config.ffn_width
    nets = one_net
    if isinstance(config, MoeConfig):
        nets = one_net * (experts + config.num_shared_experts) + D * config.num_experts
    return config.num_layers * (attention + nets + 2 * D) + D + vocab_size * D * (1 if config.tied_embeddings else 2)


def _biased_layer(sizes: Gpt2Config | EncoderConfig | ElectraConfig | GeneratorSizes) -> int:
    """A layer of GPT-2 or BERT: four projections, two matrices of the feed-forward net, two LayerNorms, all with biases."""
    D, F = sizes.width, sizes.ffn_width
    return 4 * (D * D + D) + (D * F + F) + (F * D + D) + 4 * D


def _encoder(config: EncoderConfig, vocab_size: int) -> int:
    D, width = config.width, config.embedding_width or config.width
    head = _transform(D, width) + vocab_size * (1 if config.tied_embeddings else 1 + width)
    following = D * D + D + 2 * D + 2 if config.next_sentence else 0
    return _embeddings(config, vocab_size, width) + _projection(width, D) + config.num_layers * _biased_layer(config) + head + following


def _electra(config: ElectraConfig, vocab_size: int) -> int:
    D, width, generator = config.width, config.embedding_width, config.generator
    layers = generator.num_layers * _biased_layer(generator) + config.num_layers * _biased_layer(config)
    projections = _projection(width, generator.width) + _projection(width, D)
    heads = _transform(generator.width, width) + vocab_size + D * D + D + D + 1
    return _embeddings(config, vocab_size, width) + projections + layers + heads


def _encoder_decoder(config: EncoderDecoderConfig, vocab_size: int) -> int:
    D, inner = config.width, config.num_heads * (config.head_dim or config.width // config.num_heads)
    attention, net = 4 * D * inner, (3 if config.feed_forward == "gated_gelu" else 2) * D * config.ffn_width
    encoder = config.num_layers * (attention + net + 2 * D)
    decoder = (config.num_decoder_layers or config.num_layers) * (2 * attention + net + 3 * D)
    vectors = vocab_size * D * (1 if config.tied_embeddings else 2)
    return vectors + 2 * config.relative_buckets * config.num_heads + encoder + decoder + 2 * D


def _embeddings(config: EncoderConfig | ElectraConfig, vocab_size: int, width: int) -> int:
    return (vocab_size + config.max_positions + config.num_segments + 2) * width


def _projection(width: int, output_width: int) -> int:
    return width * output_width + output_width if width != output_width else 0


def _transform(width: int, output_width: int) -> int:
    return width * output_width + 3 * output_width


def differences(config: ModelConfig, wanted: ModelConfig) -> tuple[str, ...]:
    """What decides the tensors of a model and isn't as wanted, a few words each; nothing if the weights of one fit the other.

    Example:
        >>> gpt2 = Gpt2Config(width=768, num_layers=12, num_heads=12, ffn_width=3072)
        >>> differences(gpt2, gpt2.model_copy(update={"width": 1024, "dropout": 0.1}))
        ('width 768 instead of 1024',)
    """
    if config.architecture != wanted.architecture:
        return (f"architecture {config.architecture} instead of {wanted.architecture}",)
    names = config.model_dump(exclude=HOW_IT_TRAINS | (POSITIONS if isinstance(config, LlamaSizes) else set()))
    pairs = {name: (_told(config, name), _told(wanted, name)) for name in names if getattr(config, name) != getattr(wanted, name)}
    return tuple(f"{name} {found} instead of {expected}" for name, (found, expected) in pairs.items() if found != expected)


def _told(config: ModelConfig, name: str) -> Any:
    """A setting of a model, or what stands for it where it is unset."""
    unset = {"head_dim": config.width // config.num_heads, "embedding_width": config.width, "num_decoder_layers": config.num_layers}
    value = getattr(config, name)
    return unset.get(name) if value is None else value
