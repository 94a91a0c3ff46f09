"""Tokens, money and energy of a training."""

from __future__ import annotations

from typing import Any

import pytest

from llm.plan import cost
from llm.recipe import Recipe, load
from llm.train import devices, schedule
from llm.train.devices import named
from tests.plan.conftest import settings


def test_tokens_are_those_of_the_stream_that_a_ramp_reads() -> None:
    train = settings(steps=50, global_batch_size=32, micro_batch_size=2, ramp={"rows": 4, "steps": 21})
    assert cost.training_tokens(train, 16) == 16 * sum(schedule.rows(train, step) for step in range(1, 51))


def test_chinchilla_s_own_model_suits_its_tokens() -> None:
    """70 billion parameters for 1.4 trillion tokens, https://arxiv.org/abs/2203.15556."""
    data = cost.Data(tokens=1_400_000_000_000, suited_tokens=20 * 70_000_000_000, unique_tokens=1_400_000_000_000)
    assert data.warnings == ()
    assert data.epochs == 1
    short, repeated = cost.Data(10, 100, None), cost.Data(100, 100, 10)
    assert "10% of the 20 tokens per parameter" in short.warnings[0]
    assert "read 10.0 times" in repeated.warnings[0]


def test_energy_of_a_gpu_day_is_its_watts_times_a_day() -> None:
    one = priced({"workers": 1, "layout": {}, "price": {"gpu_hour_usd": 2, "pue": 1.1, "kg_co2e_per_kwh": 0.5}})
    rate = cost.training_tokens(one.train, one.tokenize.row_tokens) / 86_400
    found = cost.estimate(one, one.train, named("H100"), precision="bf16", cuda=True, tokens_per_second=rate)
    assert (found.usd, found.kwh, found.kg_co2e) == pytest.approx((48, 0.7 * 24 * 1.1, 0.35 * 24 * 1.1))


def test_cores_are_paid_as_a_budget_counts_them() -> None:
    cores = priced({"workers": 2, "layout": {}, "cpus_per_worker": 3, "threads_per_worker": 1, "price": {"cpu_hour_usd": 0.5}})
    rate = cost.training_tokens(cores.train, cores.tokenize.row_tokens) / 3600
    found = cost.estimate(cores, cores.train, devices.CPU_CORE, precision="fp32", cuda=False, tokens_per_second=rate)
    assert found.usd == pytest.approx(2 * 3 * 0.5)


def priced(cluster: dict[str, Any]) -> Recipe:
    return load("llama-1b", {"cluster": cluster})
