"""Every architecture and the module that is built for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from llm.model.config import ModelConfig
from llm.model.decoder import Decoder
from llm.model.electra import Electra
from llm.model.encoder import Encoder
from llm.model.encoder_decoder import EncoderDecoder
from llm.model.gpt2 import Gpt2
from llm.model.moe import Moe

FAMILIES: Mapping[str, Any] = {
    "decoder": Decoder,
    "gpt2": Gpt2,
    "moe": Moe,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
    "electra": Electra,
}


def build(config: ModelConfig, vocab_size: int) -> nn.Module:
    """A freshly initialised model of these sizes."""
    return FAMILIES[config.architecture](config, vocab_size)
