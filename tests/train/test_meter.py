"""The meter counts what happened, the budget stops at its limits, and a trace can be opened."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.model.config import DecoderConfig
from llm.train import devices
from llm.train.budget import Spent, exceeded
from llm.train.config import BudgetConfig, PriceConfig
from llm.train.meter import Meter, exposed_communication, peak_memory_bytes
from llm.train.parallel.world import World
from llm.train.profile import Trace

MODEL = DecoderConfig(width=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=32, max_positions=16)


def test_phases_and_the_rest_add_up_to_the_step() -> None:
    meter = Meter(MODEL, 48, 16, World(0, 1, torch.device("cpu")))
    with meter.phase("data"):
        time.sleep(0.02)
    with meter.phase("gradient"):
        time.sleep(0.02)
    with meter.phase("validation"):
        time.sleep(0.04)
    first, second = meter.step(1000), meter.step(1000)
    assert first["data_share"] + first["gradient_share"] + first["validation_share"] == pytest.approx(1, abs=0.2)
    assert first["data_share"] < first["validation_share"]
    assert "data_share" not in second
    energy = 1000 / first["tokens_per_second"] / (1 - first["validation_share"]) * meter.device.watts / 3.6e6
    assert first["energy_kwh"] == pytest.approx(energy, rel=0.05)


def test_utilisation_of_a_known_chip_is_the_textbook_ratio() -> None:
    """GPT-2's 124 M parameters on an A100: 6 N + attention per token, as PaLM's appendix B counts, causal half counted."""
    meter = Meter(MODEL, 48, 16, World(0, 4, torch.device("cpu")), precision="bf16")
    meter.device, meter.began = devices.named("A100"), time.perf_counter() - 2.0
    record = meter.step(1_000_000)
    matrices = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32) + 48 * 16
    flops = 6 * matrices + 3 * 2 * 4 * 16 * 8  # scores and values: 4 per query number and seen token, 8 seen on average
    assert record["mfu"] == pytest.approx(1e6 * flops / 2.0 / (4 * 312e12), abs=1e-4)
    assert record["tokens_per_second"] == pytest.approx(500_000, rel=0.01)


def test_only_several_micro_batches_show_what_waiting_costs() -> None:
    assert exposed_communication([]) == exposed_communication([3.0]) == 0
    assert exposed_communication([1.0, 1.5, 0.5, 1.75]) == pytest.approx(0.75)
    assert exposed_communication([2.0, 1.0]) == 0
    meter, sharded = (Meter(MODEL, 48, 16, World(0, 2, torch.device("cpu")), exchanges_last=last) for last in (True, False))
    meter.mark()
    meter.begin()
    for pause in (0, 0.01, 0.01, 0.05):
        time.sleep(pause)
        meter.mark()
        sharded.mark()
    assert len(meter.marks) == 4
    meter.add("gradient", 0.07)
    record = meter.step(10)
    assert "communication_share" not in sharded.step(10)
    assert 0 < record["communication_share"] < record["gradient_share"] + record["communication_share"] < 1.1


def test_peak_memory_is_this_process_and_never_falls() -> None:
    before = peak_memory_bytes("cpu")
    block = np.ones(300_000_000, dtype=np.uint8)
    grown = peak_memory_bytes("cpu")
    assert grown >= before
    assert grown > len(block)
    del block
    assert peak_memory_bytes("cpu") >= grown - 2**20


@pytest.mark.parametrize(
    ("budget", "spent", "reason"),
    [
        (BudgetConfig(), Spent(1e9, 1e9), None),
        (BudgetConfig(hours=1), Spent(3599), None),
        (BudgetConfig(hours=1), Spent(3600), "hours"),
        (BudgetConfig(usd=20), Spent(3600), "usd"),  # 8 GPUs · 2.5 $
        (BudgetConfig(usd=20.01), Spent(3600), None),
        (BudgetConfig(kwh=1.2), Spent(1, 1.0), "kwh"),  # the building takes 1.2 times the chips
        (BudgetConfig(kwh=1.21), Spent(1, 1.0), None),
    ],
)
def test_a_budget_names_the_limit_that_is_reached(budget: BudgetConfig, spent: Spent, reason: str | None) -> None:
    answer = exceeded(budget, PriceConfig(gpu_hour_usd=2.5, pue=1.2), spent, gpus=8, cores=64)
    assert answer is None if reason is None else f"cluster.budget.{reason}" in str(answer)


def test_cores_are_paid_only_where_there_is_no_gpu() -> None:
    price = PriceConfig(gpu_hour_usd=2.5, cpu_hour_usd=0.5)
    assert exceeded(BudgetConfig(usd=2), price, Spent(3600), gpus=0, cores=4)
    assert not exceeded(BudgetConfig(usd=2.6), price, Spent(3600), gpus=1, cores=400)


def test_a_trace_opens_and_names_the_heaviest_operators(tmp_path: Path) -> None:
    trace = Trace((2, 3), tmp_path, rank=1)
    left = torch.randn(200, 200)
    for step in range(1, 6):
        trace.before(step)
        for _ in range(5):
            left @ left
        trace.after(step)
    with gzip.open(tmp_path / "trace-1.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::mm") == 2 * 5
    table = (tmp_path / "trace-1.txt").read_text().splitlines()
    assert "aten::mm" in table[0]
    assert len(table) <= 10
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_run_that_ends_early_leaves_the_trace_that_there_is(tmp_path: Path) -> None:
    trace = Trace((2, 9), tmp_path, rank=0)
    trace.before(2)
    torch.ones(4) @ torch.ones(4)
    trace.after(2)
    trace.close()
    trace.close()
    with gzip.open(tmp_path / "trace-0.json.gz") as file:
        assert "aten::dot" in [event.get("name") for event in json.load(file)["traceEvents"]]


def test_no_trace_without_steps(tmp_path: Path) -> None:
    trace = Trace(None, tmp_path, rank=0)
    trace.before(1)
    trace.after(1)
    assert list(tmp_path.iterdir()) == []
