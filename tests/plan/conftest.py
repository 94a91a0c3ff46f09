"""Models and settings that several of these tests plan for."""

from __future__ import annotations

from pathlib import Path

from llm.model.config import DecoderConfig
from llm.train.config import TrainConfig

LLAMA = {"width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 176, "max_positions": 32}
GPT2 = {"architecture": "gpt2", "width": 64, "num_heads": 4, "ffn_width": 256, "max_positions": 32}
MOE = LLAMA | {"architecture": "moe", "num_experts": 4, "experts_per_token": 2, "num_shared_experts": 1}
T5 = {"architecture": "encoder_decoder", "width": 64, "num_heads": 4, "ffn_width": 160, "max_positions": 512}
MINI = Path(__file__).parent.parent / "mini.yaml"
LARGE = {"optimizer": {"kind": "adamw"}, "precision": "bf16", "micro_batch_size": 1}


def settings(**changes: object) -> TrainConfig:
    plain: dict[str, object] = {"steps": 100, "global_batch_size": 8, "micro_batch_size": 8, "schedule": {"warmup_steps": 0}}
    return TrainConfig.model_validate(plain | changes)


def llama_8b() -> DecoderConfig:
    return DecoderConfig(
        width=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_width=14336, max_positions=8192, tied_embeddings=False
    )


def llama_70b() -> DecoderConfig:
    return DecoderConfig(
        width=8192, num_layers=80, num_heads=64, num_kv_heads=8, ffn_width=28672, max_positions=8192, tied_embeddings=False
    )
