"""What a model is made of, as numbers: matrices per layer, and what its backward pass keeps of every token.

The counts of kept numbers were read off `torch.autograd.graph.saved_tensors_hooks`, and a test holds them to it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from llm.model import sizes
from llm.model.config import (
    ElectraConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    Gpt2Config,
    LlamaSizes,
    ModelConfig,
    MoeConfig,
)
from llm.train.objective.config import MaskedConfig, MixtureConfig, ObjectiveConfig, ReplacedConfig, SpansConfig

SCORE_COPIES_OF_DROPOUT = 3  # shares, their mask, what is left of them


@dataclass(frozen=True)
class Passes:
    """Tokens that pass each part of a model, for each token of a row: what the objective makes of the row."""

    read: float = 1.0  # by an encoder, or by the only net
    written: float = 1.0  # by the decoder behind an encoder
    told: float = 1.0  # counted targets, which the output head multiplies


@dataclass(frozen=True)
class Saved:
    """Numbers that a layer keeps for its backward pass, for each token that passes it."""

    fp32: float = 0  # in float32 whatever the precision: the residual stream, norms, log-sums of the scores
    compute: float = 0  # in the precision of matrix products
    casts: float = 0  # copies that only autocast makes
    uncast: float = 0  # what those are copies of, kept only without autocast

    def __add__(self, other: Saved) -> Saved:
        return Saved(self.fp32 + other.fp32, self.compute + other.compute, self.casts + other.casts, self.uncast + other.uncast)

    def __mul__(self, times: float) -> Saved:
        return Saved(self.fp32 * times, self.compute * times, self.casts * times, self.uncast * times)

    def bytes(self, compute_bytes: int) -> float:
        """Per token, with numbers of so many bytes in matrix products."""
        extra = 4 * self.uncast if compute_bytes == 4 else compute_bytes * self.casts
        return 4 * self.fp32 + compute_bytes * self.compute + extra


@dataclass(frozen=True)
class Layer:
    """One layer, `count` times."""

    count: int
    matrices: int  # numbers in its matrices
    active: int  # of those, what one token of a row is multiplied by, on average
    vectors: int  # numbers in norms and biases
    queries: int  # H · C of all its attentions
    attended: float  # of those, what a token of a row asks a whole row with, on average
    heads: int
    ffn: int  # widest inner numbers per token
    saved: Saved  # on a CPU
    products: float  # numbers that matrix products put out for each token that passes it
    experts: int = 0  # of the numbers in matrices, those of routed experts
    visits: int = 0  # routed experts that a token visits
    passed: float = 1.0  # tokens that pass it, for each token of a row
    # where dropout or a bias that learns rules out a CPU's fused attention:
    unfused: float = 0.0  # queries, keys and values of a token, which are then kept in float32
    scores: float = 0.0  # for each token that passes it and each token of a row, in float32
    score_copies: int = 1

    @property
    def parameters(self) -> int:
        """Of one such layer."""
        return self.matrices + self.vectors


@dataclass(frozen=True)
class Shape:
    """A model as layers between an embedding and a head."""

    width: int
    vocab_size: int
    layers: tuple[Layer, ...]
    head: int  # matrix of the output head
    tied: bool
    causal: bool
    parameters: int  # trainable numbers, a tied matrix counted once
    around: int = 0  # numbers in further matrices that every token passes
    told: float = 1.0  # tokens that the head multiplies, for each token of a row

    @property
    def num_layers(self) -> int:
        """Of all kinds."""
        return sum(layer.count for layer in self.layers)

    @property
    def blocks(self) -> int:
        """Parameters inside the layers."""
        return sum(layer.count * layer.parameters for layer in self.layers)

    @property
    def matrices(self) -> int:
        """Numbers in the layers' matrices."""
        return sum(layer.count * layer.matrices for layer in self.layers)

    @property
    def experts(self) -> int:
        """Numbers in the matrices of routed experts."""
        return sum(layer.count * layer.experts for layer in self.layers)

    @property
    def active(self) -> int:
        """Numbers that one token is multiplied by: matrices it passes and the head, not the embedding that it looks up."""
        return sum(layer.count * layer.active for layer in self.layers) + self.around + round(self.told * self.head)


def of(model: ModelConfig, vocab_size: int, objective: ObjectiveConfig | None = None) -> Shape:
    """The shape of a `model` section over a vocabulary; without an objective every token passes every part.

    Example:
        >>> gpt2 = of(Gpt2Config(width=768, num_layers=12, num_heads=12, ffn_width=3072), 50_257)
        >>> gpt2.parameters, gpt2.active  # the positions are looked up, the tied head is multiplied
        (124439808, 123532032)
    """
    passing = passes(objective, encoder_decoder=isinstance(model, EncoderDecoderConfig))
    return Shape(
        width=model.width,
        vocab_size=vocab_size,
        layers=_layers(model, passing),
        head=vocab_size * (getattr(model, "embedding_width", None) or model.width),
        tied=getattr(model, "tied_embeddings", True),
        causal=isinstance(model, LlamaSizes | Gpt2Config),
        parameters=sizes.parameters(model, vocab_size),
        around=_around(model),
        told=passing.told,
    )


def passes(objective: ObjectiveConfig | None, *, encoder_decoder: bool) -> Passes:
    """What an objective makes of a row, the end tokens that it adds left out.

    Example:
        >>> passes(SpansConfig(kind="spans"), encoder_decoder=True)
        Passes(read=0.9, written=0.2, told=0.2)
    """
    match objective:
        case MixtureConfig(parts=parts):
            each = [(part.share, passes(part.objective, encoder_decoder=encoder_decoder)) for part in parts]
            whole = sum(share for share, _ in each)
            return Passes(*(sum(share * getattr(found, field.name) for share, found in each) / whole for field in fields(Passes)))
        case SpansConfig(share=share, mean_span_tokens=length):  # a sentinel for each span stands on both sides
            read, written = round(1 - share + share / length, 9), round(share + share / length, 9)
            return Passes(read, written, told=written) if encoder_decoder else Passes(read + written, told=written)
        case MaskedConfig(share=share):
            return Passes(told=share)
        case ReplacedConfig(share=share):  # the generator's samples take a forward pass more
            return Passes(told=share * 4 / 3)
        case _:
            return Passes()


def flops_per_token(whole: Shape, row_tokens: int, *, backward: bool = True) -> float:
    """Floating-point operations per token of training, or of a forward pass alone, without what is computed twice.

    Two per number that a token is multiplied by, and two per query number for each of the scores and the sum of the
    values, over the half of the row that a causal token sees on average; backward takes twice as much as forward.

    Source: PaLM, https://arxiv.org/abs/2204.02311, appendix B, with the causal half counted as half.
    Example:
        >>> llama = of(LlamaSizes(width=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_width=14336, tied_embeddings=False), 128_256)
        >>> round(flops_per_token(llama, 8192) / 1e9, 1)
        51.5
    """
    seen = row_tokens / 2 if whole.causal else row_tokens
    attention = sum(layer.count * 4 * layer.attended * seen for layer in whole.layers)
    return (3 if backward else 1) * (2 * whole.active + attention)


def _layers(model: ModelConfig, passing: Passes) -> tuple[Layer, ...]:
    if isinstance(model, EncoderDecoderConfig):
        return _encoder_decoder(model, passing)
    read = passing.read
    return tuple(
        replace(layer, active=round(read * layer.active), attended=read**2 * layer.attended, passed=read)
        for layer in _layers_of_one_net(model)
    )


def _layers_of_one_net(model: LlamaSizes | Gpt2Config | EncoderConfig | ElectraConfig) -> tuple[Layer, ...]:
    match model:
        case LlamaSizes():
            return (_llama(model),)
        case ElectraConfig():  # the discriminator and the generator that runs before it
            small = model.generator
            return (
                _classic(model.num_layers, model.width, model.num_heads, model.ffn_width, model.dropout),
                _classic(small.num_layers, small.width, small.num_heads, small.ffn_width, model.dropout),
            )
        case Gpt2Config() | EncoderConfig():
            return (_classic(model.num_layers, model.width, model.num_heads, model.ffn_width, model.dropout),)


def _around(model: ModelConfig) -> int:
    """Projections from narrower embeddings, the transform before the head, and ELECTRA's verdict."""
    match model:
        case EncoderConfig():
            width = model.embedding_width or model.width
            return width * model.width * (1 + (width != model.width))
        case ElectraConfig(width=D, embedding_width=width, generator=small):
            projections = sum(width * each for each in (D, small.width) if each != width)
            return projections + small.width * width + D * D + D
        case _:
            return 0


def _llama(model: LlamaSizes) -> Layer:
    """Two RMSNorms, grouped-query attention, SwiGLU or experts."""
    D, C, F = model.width, model.head_dim or model.width // model.num_heads, model.ffn_width
    Q, K = model.num_heads * C, model.num_kv_heads * C
    attention, net = D * (2 * Q + 2 * K), 3 * D * F
    norms = Saved(fp32=2 * (2 * D + 1), uncast=2 * D)
    kept = norms + Saved(fp32=model.num_heads, compute=2 * Q + 2 * K, casts=3 * D)
    vectors = 2 * D + (Q + 2 * K) * model.attention_bias + 2 * C * model.qk_norm
    if model.qk_norm:
        kept += Saved(fp32=2 * (Q + K) + model.num_heads + model.num_kv_heads, compute=Q)
    if model.dropout:
        kept += Saved(compute=2 * D)
    layer = Layer(
        count=model.num_layers,
        matrices=attention + net,
        active=attention + net,
        vectors=vectors,
        queries=Q,
        attended=Q,
        heads=model.num_heads,
        ffn=F,
        saved=kept + Saved(compute=4 * F, casts=2 * D),
        products=2 * Q + 2 * K + 2 * D + 2 * F,
    )
    if not isinstance(model, MoeConfig):
        return layer
    E, per_token, shared = model.num_experts, model.experts_per_token, model.num_shared_experts
    router = Saved(fp32=2 * E + 3 + D, uncast=-D)  # the router reads the norm's output in float32
    experts = Saved(fp32=D + 6, compute=4 * F + D, casts=2 * D, uncast=D) * per_token
    return replace(
        layer,
        matrices=attention + E * D + (E + shared) * net,
        active=attention + E * D + (per_token + shared) * net,
        ffn=F * (per_token + shared),
        saved=kept + router + experts + (Saved(compute=4 * F * shared, casts=2 * D) if shared else Saved()),
        products=2 * Q + 2 * K + D + E + (D + 2 * F) * (per_token + shared),
        experts=E * net,
        visits=per_token,
    )


def _classic(count: int, D: int, num_heads: int, F: int, dropout: float = 0.0) -> Layer:
    """Two LayerNorms, attention with as many key as query heads, a net of two matrices, biases."""
    matrices = 4 * D * D + 2 * D * F
    attention = Saved(fp32=3 * D, compute=3 * D) if dropout else Saved(fp32=num_heads, compute=4 * D)
    return Layer(
        count=count,
        matrices=matrices,
        active=matrices,
        vectors=9 * D + F,
        queries=D,
        attended=D,
        heads=num_heads,
        ffn=F,
        saved=attention + Saved(fp32=2 * D + 4, compute=2 * F, casts=4 * D, uncast=2 * D),
        products=6 * D + F,
        unfused=3 * D if dropout else 0,
        scores=num_heads if dropout else 0,
        score_copies=SCORE_COPIES_OF_DROPOUT,
    )


def _encoder_decoder(model: EncoderDecoderConfig, passing: Passes) -> tuple[Layer, ...]:
    """T5: the decoder's layers have a second attention, onto the encoder, whose keys and values are made of what that read."""
    D, F, H, gated = model.width, model.ffn_width, model.num_heads, model.feed_forward == "gated_gelu"
    Q = H * (model.head_dim or D // H)
    read, written, matrices = passing.read, passing.written, 4 * D * Q + (3 if gated else 2) * D * F
    dropped = model.dropout > 0
    net = Saved(compute=(4 + dropped) * F, casts=2 * D) if gated else Saved(compute=(1 + 2 * dropped) * F, casts=D)
    attention = Saved(fp32=2 * D + 1 + 3 * Q, compute=Q + D * dropped, casts=3 * D, uncast=D)
    kept = attention + net + Saved(fp32=2 * D + 1, compute=D * dropped, uncast=D)
    encoder = Layer(
        count=model.num_layers,
        matrices=matrices,
        active=round(read * matrices),
        vectors=2 * D,
        queries=Q,
        attended=read**2 * Q,
        heads=H,
        ffn=F,
        saved=kept,
        products=4 * Q + 2 * D + (2 if gated else 1) * F,
        passed=read,
        unfused=3 * Q,
        scores=read * H,
        score_copies=SCORE_COPIES_OF_DROPOUT if dropped else 1,
    )
    asked = read / written  # tokens of the encoder, for each of the decoder
    across = (1 + 2 * asked) * Q
    cross = Saved(fp32=2 * D + 1, compute=Q, casts=D + 2 * asked * D, uncast=D)
    cross += Saved(fp32=across, compute=D) if dropped else Saved(fp32=H, compute=across)
    decoder = replace(
        encoder,
        count=model.num_decoder_layers or model.num_layers,
        matrices=matrices + 4 * D * Q,
        active=round(written * (matrices + 2 * D * Q) + read * 2 * D * Q),
        vectors=3 * D,
        queries=2 * Q,
        attended=written * (written + read) * Q,
        saved=kept + cross,
        products=encoder.products + Q + across + D,
        passed=written,
        unfused=3 * Q + (across if dropped else 0),
        scores=(written + (read if dropped else 0)) * H,
    )
    return encoder, decoder
