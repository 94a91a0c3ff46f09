"""Predictions against reality: kept bytes against autograd's hooks, peaks against processes, layouts against practice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llm.errors import CapacityError, RecipeError
from llm.model import families, shape, sizes
from llm.model.config import DecoderConfig, ModelConfig, parse_model
from llm.plan import cost, forecast, layout, memory
from llm.plan.layout import Cluster
from llm.plan.measure import measure
from llm.plan.memory import Worker
from llm.recipe import load, parse_override
from llm.train.config import PriceConfig, TrainConfig
from llm.train.devices import named
from llm.train.objective import cross_entropy
from llm.train.parallel import check as parallel
from llm.train.parallel.config import LayoutConfig

LLAMA = {"width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 176, "max_positions": 32}
GPT2 = {"architecture": "gpt2", "width": 64, "num_heads": 4, "ffn_width": 256, "max_positions": 32}
MOE = LLAMA | {"architecture": "moe", "num_experts": 4, "experts_per_token": 2, "num_shared_experts": 1}
MODELS = {
    "llama": LLAMA,
    "wide heads": LLAMA | {"head_dim": 32},
    "query and key norms": LLAMA | {"qk_norm": True, "num_kv_heads": 1},
    "dropout": LLAMA | {"dropout": 0.1},
    "mixture": MOE,
    "gpt2": GPT2,
    "bert": GPT2 | {"architecture": "encoder"},
}
B, T = 3, 32
QUIET_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


def kept_bytes(config: ModelConfig, *, bf16: bool) -> int:
    """Bytes that the hooks see the forward pass keep, a storage once, parameters left out."""
    torch.manual_seed(0)
    model: Any = families.build(config, 64).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        if (place := tensor.untyped_storage().data_ptr()) not in parameters:
            storages[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.features(torch.randint(0, 64, (B, T)))
    return sum(storages.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_layer_keeps_what_autograd_keeps(name: str, bf16: bool) -> None:
    one, two = (parse_model(MODELS[name] | {"num_layers": count}) for count in (1, 2))
    layer = shape.of(one, 64).layers[0]
    casts = 2 * (layer.matrices - (64 * 4 if name == "mixture" else 0)) if bf16 else 0  # the router stays float32
    expected = B * T * layer.saved.bytes(2 if bf16 else 4) + casts
    assert kept_bytes(two, bf16=bf16) - kept_bytes(one, bf16=bf16) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("name", MODELS)
def test_layers_have_the_parameters_of_the_module(name: str) -> None:
    config = parse_model(MODELS[name] | {"num_layers": 3})
    blocks = sum(parameter.numel() for path, parameter in families.build(config, 64).named_parameters() if "blocks." in path)
    whole = shape.of(config, 64)
    assert whole.blocks == blocks
    assert whole.parameters == sizes.parameters(config, 64)


def test_the_chunk_of_logits_is_that_of_the_loss() -> None:
    assert memory.CHUNK_LOGITS == cross_entropy.CHUNK_LOGITS


@pytest.mark.long
@pytest.mark.parametrize(
    ("precision", "checkpointing", "optimizer"), [("fp32", "none", "adamw"), ("bf16", "none", "muon"), ("fp32", "full", "adamw")]
)
def test_a_process_peaks_where_predicted(precision: str, checkpointing: str, optimizer: str) -> None:
    """Training in a process of its own, less what the libraries take, which a model of no size shows."""
    model = DecoderConfig(width=256, num_layers=6, num_heads=4, num_kv_heads=2, ffn_width=704, max_positions=512)
    train = settings(precision=precision, activation_checkpointing=checkpointing, optimizer={"kind": optimizer})
    small = DecoderConfig(width=64, num_layers=1, num_heads=1, num_kv_heads=1, ffn_width=64, max_positions=512)
    floor = measure(small, 64, 512, settings(precision=precision), steps=2, variables=QUIET_MALLOC)
    measured = measure(model, 8192, 512, train, steps=2, variables=QUIET_MALLOC)
    predicted = memory.predict(model, 8192, 512, train, Worker(bf16=precision == "bf16"))
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


def settings(**changes: object) -> TrainConfig:
    plain: dict[str, object] = {"steps": 100, "global_batch_size": 8, "micro_batch_size": 8, "schedule": {"warmup_steps": 0}}
    return TrainConfig.model_validate(plain | changes)


def test_what_does_not_fit_names_the_setting_of_its_fullest_moment() -> None:
    model = DecoderConfig(width=256, num_layers=4, num_heads=4, num_kv_heads=2, ffn_width=704, max_positions=4096)
    with pytest.raises(CapacityError, match=r"finetune\.train\.micro_batch_size.*activation_checkpointing.*cluster\.layout\.shard"):
        memory.check(memory.predict(model, 1024, 4096, settings(), Worker()), 2**30, section="finetune.train")
    huge = model.model_copy(update={"width": 2048, "ffn_width": 8192})
    with pytest.raises(CapacityError, match=r"cluster\.layout\.shard.*optimizer\.state_bits"):
        memory.check(memory.predict(huge, 1024, 16, settings(micro_batch_size=1, global_batch_size=1), Worker()), 2**30)
    memory.check(memory.predict(model, 1024, 16, settings(), Worker()), 2**30)


def test_states_of_adamw_are_zero_s_sixteen_bytes() -> None:
    """ZeRO, figure 1, with float32 throughout: 4 of weights, 4 of gradients, 8 of optimizer, all divided by the shards."""
    model, train = llama_8b(), settings(optimizer={"kind": "adamw"})
    for shards in (1, 8):
        predicted = memory.predict(model, 128_256, 8192, train, Worker("cuda", True, LayoutConfig(shard=shards)))
        states = predicted.parameters_bytes + predicted.gradients_bytes + predicted.optimizer_bytes
        assert states == pytest.approx(16 * 8_030_261_248 / shards, rel=1e-6)


def llama_8b() -> DecoderConfig:
    return DecoderConfig(
        width=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_width=14336, max_positions=8192, tied_embeddings=False
    )


def llama_70b() -> DecoderConfig:
    return DecoderConfig(
        width=8192, num_layers=80, num_heads=64, num_kv_heads=8, ffn_width=28672, max_positions=8192, tied_embeddings=False
    )


LARGE = {"optimizer": {"kind": "adamw"}, "precision": "bf16", "micro_batch_size": 1}


def test_eight_billion_on_one_machine_are_sharded() -> None:
    """torchtitan, docs/performance.md, table 1: Llama 3.1 8B on 8 H100s by FSDP with selective checkpointing.

    There 5,762 tokens per second and GPU, and 6,667 compiled.
    """
    train = settings(global_batch_size=16, **LARGE)
    choice = layout.choose(llama_8b(), 128_256, 8192, train, Cluster(8, 8, 80, named("H100")))
    assert choice.best.name == "shard 8"
    assert 0.85 * 5_762 < 16 * 8192 / choice.best.seconds / 8 < 1.15 * 6_667
    assert any(line.startswith("replicate 8: doesn't fit") for line in choice.why)


def test_seventy_billion_on_sixty_four_are_sharded_and_split() -> None:
    """torchtitan trains Llama 3.1 70B by FSDP and tensor parallelism together, the latter inside machines of 8."""
    train = settings(global_batch_size=256, **LARGE)
    choice = layout.choose(llama_70b(), 128_256, 8192, train, Cluster(64, 8, 80, named("H100")))
    assert choice.best.layout.shard >= 8
    assert 2 <= choice.best.layout.tensor <= 8
    assert choice.best.memory.peak_bytes < 80 * 2**30


def test_a_slow_network_keeps_the_exchange_inside_machines() -> None:
    model = llama_8b()
    train = settings(global_batch_size=64, **LARGE)
    slow, fast = (
        layout.choose(model, 128_256, 8192, train, Cluster(32, 8, 80, named("H100"), link)).best for link in ("ethernet", "infiniband")
    )
    assert (slow.layout.shard, slow.replicate) == (8, 4)
    assert slow.seconds > fast.seconds


def test_a_small_model_is_replicated_and_one_gpu_needs_no_layout() -> None:
    model = DecoderConfig(width=768, num_layers=12, num_heads=12, num_kv_heads=12, ffn_width=2048, max_positions=1024)
    train = settings(global_batch_size=512, precision="bf16")
    alone = layout.choose(model, 50_257, 1024, train, Cluster(1, 1, 80, named("A100")))
    assert alone.best.name == "one GPU"
    assert alone.best.kinds == frozenset()
    several = layout.choose(model, 50_257, 1024, train, Cluster(8, 8, 80, named("A100")))
    assert len(several.best.kinds) == 1
    assert several.best.seconds < alone.best.seconds / 6


@pytest.mark.parametrize(("recipe", "gpus"), [("llama-8b", 8), ("llama-70b", 64), ("gpt2-124m", 8)])
def test_the_settings_of_a_layout_make_a_recipe_that_the_engine_takes(recipe: str, gpus: int) -> None:
    loaded = load(recipe)
    lines = forecast.elsewhere(loaded, loaded.train, Cluster(gpus, 8, 80, named("H100")))
    (settings_line,) = (text for label, text in lines if label == "set")
    planned = load(recipe, dict(parse_override(text) for text in settings_line.removeprefix("--set ").split(" --set ")))
    assert planned.cluster.workers == gpus
    parallel.check(planned.cluster.layout, planned.model, planned.train, planned.tokenize.row_tokens, gpus)
    assert {"model", "memory", "layout", "step", "why not", "time", "cost", "data"} <= {label for label, _ in lines}


def test_every_layout_divides_the_cluster() -> None:
    train = settings(global_batch_size=64, **LARGE)
    for candidate in layout._candidates(llama_70b(), 128_256, 8192, train, Cluster(64, 8, 80, named("H100"))):
        assert candidate.layout.model_workers * candidate.replicate == 64
        assert candidate.layout.tensor <= 8


def test_what_fits_nowhere_and_what_does_not_divide() -> None:
    with pytest.raises(CapacityError, match="no layout fits 8 GPUs of 24 GiB"):
        layout.choose(llama_70b(), 128_256, 8192, settings(**LARGE), Cluster(8, 8, 24, named("L4")))
    with pytest.raises(RecipeError, match=r"train\.global_batch_size"):
        layout.choose(
            llama_8b().model_copy(update={"num_layers": 31}),
            128_256,
            2048,
            settings(global_batch_size=9, micro_batch_size=1),
            Cluster(7, 7, 80, named("H100")),
        )


def test_chinchilla_s_own_model_suits_its_tokens() -> None:
    """70 billion parameters for 1.4 trillion tokens, https://arxiv.org/abs/2203.15556."""
    data = cost.Data(tokens=1_400_000_000_000, suited_tokens=20 * 70_000_000_000, unique_tokens=1_400_000_000_000)
    assert data.warnings == ()
    assert data.epochs == 1
    short, repeated = cost.Data(10, 100, None), cost.Data(100, 100, 10)
    assert "10% of the 20 tokens per parameter" in short.warnings[0]
    assert "read 10.0 times" in repeated.warnings[0]


def test_energy_of_a_gpu_day_is_its_watts_times_a_day() -> None:
    usd, kwh, kg = cost.spending(PriceConfig(gpu_hour_usd=2, pue=1.1, kg_co2e_per_kwh=0.5), 86_400, gpus=1, cores=0, watts=700)
    assert (usd, kwh, kg) == pytest.approx((48, 0.7 * 24 * 1.1, 0.35 * 24 * 1.1))
