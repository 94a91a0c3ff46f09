"""Layouts that are chosen, against practice."""

from __future__ import annotations

import pytest

from llm.errors import CapacityError, RecipeError
from llm.model import shape
from llm.model.config import DecoderConfig, parse_model
from llm.plan import forecast, layout
from llm.plan.layout import Cluster
from llm.recipe import load, parse_override
from llm.train import devices
from llm.train.devices import named
from llm.train.parallel import check as parallel
from llm.train.parallel.config import LayoutConfig
from tests.plan.conftest import LARGE, llama_8b, llama_70b, settings


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


WIDE_EXPERTS = {"architecture": "moe", "width": 6144, "num_layers": 2, "num_heads": 48, "num_kv_heads": 8, "ffn_width": 16384}


def test_a_layer_that_no_gpu_could_gather_has_its_experts_spread() -> None:
    model = parse_model(WIDE_EXPERTS | {"num_experts": 64, "experts_per_token": 2, "max_positions": 4096})
    train, cluster = settings(global_batch_size=64, **LARGE), Cluster(64, 8, 80, named("H100"))
    choice = layout.choose(model, 32_000, 4096, train, cluster)
    assert choice.best.name == "shard 64 × expert 64"
    assert choice.best.memory.peak_bytes < cluster.usable_bytes
    assert any(line.startswith("shard 64: doesn't fit") for line in choice.why)
    parallel.check(choice.best.layout, model, train.model_copy(update={"micro_batch_size": choice.best.micro_batch_size}), 4096, 64)
    with pytest.raises(CapacityError, match="no layout fits"):  # 64 workers can't share 48 experts out evenly
        layout.choose(model.model_copy(update={"num_experts": 48, "ffn_width": 22528}), 32_000, 4096, train, cluster)


def test_experts_are_moved_or_their_tokens_are() -> None:
    """Weights that are gathered cost the same for every batch; tokens that travel cost more the more there are."""
    model, cluster = parse_model(WIDE_EXPERTS | {"num_experts": 64, "experts_per_token": 2}), Cluster(8, 8, 80, named("H100"))
    whole, spread, gathered = shape.of(model, 32_000), LayoutConfig(shard=8, expert=8), LayoutConfig(shard=8)

    def exchange(degrees: LayoutConfig, rows: int) -> float:
        train = settings(global_batch_size=8 * rows, precision="bf16", micro_batch_size=rows)
        return layout.step_seconds(whole, 64, train, cluster, degrees, 1)[1]

    assert exchange(spread, 1) < exchange(gathered, 1) / 10
    assert exchange(spread, 8) - exchange(spread, 4) == pytest.approx(2 * (exchange(spread, 4) - exchange(spread, 2)), rel=0.05)


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


SHIPPED = [("gpt2-124m", 8), ("bert-base", 32), ("moe-small", 16), ("llama-1b", 1), ("llama-1b", 128), ("llama-1b", 512)]
SHIPPED += [("llama-8b", 8), ("llama-8b", 256), ("llama-70b", 64), ("llama-70b", 512), ("llama-70b", 1024)]


@pytest.mark.parametrize(("recipe", "gpus"), SHIPPED)
def test_the_settings_of_a_layout_make_a_recipe_that_the_engine_takes(recipe: str, gpus: int) -> None:
    loaded, cluster = load(recipe), Cluster(gpus, min(gpus, 8), 80, named("H100"))
    lines = forecast.elsewhere(loaded, cluster)
    (settings_line,) = (text for label, text in lines if label == "set")
    planned = load(recipe, dict(parse_override(text) for text in settings_line.removeprefix("--set ").split(" --set ")))
    assert planned.cluster.workers == gpus
    choice = layout.choose(loaded.model, loaded.tokenize.vocab_size, loaded.tokenize.row_tokens, loaded.train, cluster)
    assert planned.cluster.layout == choice.best.layout
    for train in (planned.train, planned.finetune.train):
        parallel.check(planned.cluster.layout, planned.model, train, planned.tokenize.row_tokens, gpus)
    assert {"pretrain", "finetune", "model", "memory", "layout", "step", "time", "cost", "data"} <= {label for label, _ in lines}


def test_a_layout_undoes_what_else_a_recipe_sets() -> None:
    given = {"cluster.min_workers": 8, "cluster.layout": {"shard": 8}, "finetune.train.ramp": {"rows": 32, "steps": 9}}
    loaded = load("llama-1b", given)
    lines = forecast.elsewhere(loaded, Cluster(4, 4, 80, named("H100")))
    (settings_line,) = (text for label, text in lines if label == "set")
    planned = load("llama-1b", given | dict(parse_override(text) for text in settings_line.removeprefix("--set ").split(" --set ")))
    assert planned.cluster.min_workers is None
    assert planned.cluster.workers == 4


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA L40", "NVIDIA L40 (taken for an A100)"),
        ("NVIDIA RTX A1000", "NVIDIA RTX A1000 (taken for an A100)"),
    ],
)
def test_a_gpu_is_known_by_whole_words(name: str, found: str) -> None:
    assert devices.gpu(name).name == found


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
