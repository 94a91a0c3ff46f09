"""Predicted peaks against processes and against published figures."""

from __future__ import annotations

from typing import Any

import pytest

from llm.errors import CapacityError
from llm.model.config import DecoderConfig, parse_model
from llm.plan import memory
from llm.plan.measure import measure
from llm.plan.memory import Worker
from llm.train.objective import cross_entropy
from llm.train.parallel.config import LayoutConfig
from tests.plan.conftest import llama_8b, settings

QUIET_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
SMALL = DecoderConfig(width=64, num_layers=1, num_heads=1, num_kv_heads=1, ffn_width=64, max_positions=512)


def test_the_chunk_of_logits_is_that_of_the_loss() -> None:
    assert memory.CHUNK_LOGITS == cross_entropy.CHUNK_LOGITS


CLASSIC: dict[str, Any] = {"width": 256, "num_layers": 6, "num_heads": 4, "ffn_width": 1024, "max_positions": 512}
LLAMA = CLASSIC | {"num_kv_heads": 2, "ffn_width": 704}
SMALL_GENERATOR = {"width": 64, "num_layers": 6, "num_heads": 2, "ffn_width": 256}
PROCESSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (LLAMA, {}),
    "bf16 and muon": (LLAMA, {"precision": "bf16", "optimizer": {"kind": "muon"}}),
    "recomputed": (LLAMA, {"activation_checkpointing": "full"}),
    "experts": (LLAMA | {"architecture": "moe", "ffn_width": 352, "num_experts": 8, "experts_per_token": 2}, {}),
    "gpt2": (CLASSIC | {"architecture": "gpt2"}, {}),
    "gpt2 with dropout": (CLASSIC | {"architecture": "gpt2", "dropout": 0.1}, {}),
    "bert": (CLASSIC | {"architecture": "encoder"}, {"objective": {"kind": "masked"}, "precision": "bf16"}),
    "t5": (CLASSIC | {"architecture": "encoder_decoder"}, {"objective": {"kind": "spans"}}),
    "t5 in bf16": (CLASSIC | {"architecture": "encoder_decoder"}, {"objective": {"kind": "spans"}, "precision": "bf16"}),
    "electra": (
        CLASSIC | {"architecture": "electra", "embedding_width": 64, "generator": SMALL_GENERATOR},
        {"objective": {"kind": "replaced"}},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_peaks_where_predicted(name: str) -> None:
    """Training in a process of its own, less what the libraries take, which a model of no size shows."""
    sizes, changes = PROCESSES[name]
    train = settings(**{"precision": "fp32", "optimizer": {"kind": "adamw"}} | changes)
    floor = measure(SMALL, 64, 512, settings(precision=train.precision), steps=2, variables=QUIET_MALLOC)
    measured = measure(parse_model(sizes), 8192, 512, train, steps=2, variables=QUIET_MALLOC)
    predicted = memory.predict(parse_model(sizes), 8192, 512, train, Worker(bf16=train.precision == "bf16"))
    assert predicted.peak_bytes - predicted.process_bytes == pytest.approx(measured.peak_bytes - floor.peak_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("precision", "checkpointing", "optimizer", "measured_mib"),
    [("fp32", "none", "adamw", 1176), ("bf16", "none", "muon", 1012), ("fp32", "full", "adamw", 868)],
)
def test_a_usual_heap_takes_what_it_took(precision: str, checkpointing: str, optimizer: str, measured_mib: int) -> None:
    """Peaks of the processes above with glibc's malloc as it is, measured once: fragments make them vary from machine to machine."""
    model = DecoderConfig(width=256, num_layers=6, num_heads=4, num_kv_heads=2, ffn_width=704, max_positions=512)
    train = settings(precision=precision, activation_checkpointing=checkpointing, optimizer={"kind": optimizer})
    predicted = memory.predict(model, 8192, 512, train, Worker(bf16=precision == "bf16", heap_share=memory.HEAP_SHARE))
    assert predicted.peak_bytes == pytest.approx(measured_mib * 2**20, rel=0.1)


def test_a_mixture_takes_what_its_largest_part_takes_alone() -> None:
    parts: list[dict[str, Any]] = [{"kind": "next_token"}, {"kind": "spans", "share": 0.5}, {"kind": "spans"}]
    mixture = {"kind": "mixture", "parts": [{"share": 1, "objective": part} for part in parts]}
    whole, *alone = (
        memory.predict(parse_model(LLAMA), 8192, 512, settings(objective=objective), Worker()).peak_bytes for objective in (mixture, *parts)
    )
    assert len(set(alone)) == 3
    assert whole == max(alone)


def test_what_does_not_fit_names_the_setting_of_its_fullest_moment() -> None:
    model = DecoderConfig(width=256, num_layers=4, num_heads=4, num_kv_heads=2, ffn_width=704, max_positions=4096)
    with pytest.raises(CapacityError, match=r"finetune\.train\.micro_batch_size.*activation_checkpointing.*cluster\.layout\.shard"):
        memory.check(memory.predict(model, 1024, 4096, settings(), Worker()), 2**30, section="finetune.train")
    huge = model.model_copy(update={"width": 2048, "ffn_width": 8192})
    with pytest.raises(CapacityError, match=r"cluster\.layout\.shard.*optimizer\.state_bits"):
        memory.check(memory.predict(huge, 1024, 16, settings(micro_batch_size=1, global_batch_size=1), Worker()), 2**30)
    memory.check(memory.predict(model, 1024, 16, settings(), Worker()), 2**30)


def test_a_tensor_layout_is_not_sent_to_eight_bits() -> None:
    huge = DecoderConfig(width=2048, num_layers=4, num_heads=4, num_kv_heads=2, ffn_width=8192, max_positions=4096)
    needed = memory.predict(huge, 1024, 16, settings(micro_batch_size=1, global_batch_size=1), Worker())
    with pytest.raises(CapacityError) as refused:
        memory.check(needed, 2**30, tensor=2)
    assert refused.value.remedy == "raise cluster.layout.shard, or lower model.width"


def test_states_of_adamw_are_zero_s_sixteen_bytes() -> None:
    """ZeRO, figure 1, with float32 throughout: 4 of weights, 4 of gradients, 8 of optimizer, all divided by the shards."""
    model, train = llama_8b(), settings(optimizer={"kind": "adamw"})
    for shards in (1, 8):
        predicted = memory.predict(model, 128_256, 8192, train, Worker("cuda", True, LayoutConfig(shard=shards)))
        states = predicted.parameters_bytes + predicted.gradients_bytes + predicted.optimizer_bytes
        assert states == pytest.approx(16 * 8_030_261_248 / shards, rel=1e-6)
