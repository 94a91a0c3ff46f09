"""A run that was interrupted ends like one that was not, and the number of workers doesn't change what is learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Trained = Callable[[int], Path]


def losses(work: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (work / "final" / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_resumed_run_is_bit_identical(trained: Trained, size: int) -> None:
    whole, resumed = trained(size) / "whole" / "final", trained(size) / "resumed" / "final"
    for name in ("model.safetensors", "history.jsonl", "config.json"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


@pytest.mark.parametrize("size", [1, 2, 3])
def test_experts_balanced_by_bias_resume_as_well(trained: Trained, size: int) -> None:
    whole, resumed = trained(size) / "moe-whole" / "final", trained(size) / "moe-resumed" / "final"
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert (whole / "history.jsonl").read_bytes() == (resumed / "history.jsonl").read_bytes()


@pytest.mark.parametrize("size", [2, 3])
def test_what_routers_did_is_told_of_all_workers(trained: Trained, size: int) -> None:
    """At the first step all groups route the same tokens by the same weights."""
    alone, together = ((trained(each) / "moe-whole" / "final" / "history.jsonl").read_text().splitlines() for each in (1, size))
    for name in ("router_largest_share", "router_entropy"):
        assert json.loads(together[0])[name] == pytest.approx(json.loads(alone[0])[name], rel=1e-5)
        assert all(name in json.loads(line) for line in together)
    assert 1 / 4 < json.loads(together[0])["router_largest_share"] <= 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_interrupted_run_did_its_lost_steps_twice(trained: Trained, size: int) -> None:
    lines = (trained(size) / "resumed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("size", [2, 3])
def test_losses_on_several_workers_are_those_on_one(trained: Trained, size: int) -> None:
    assert losses(trained(size) / "adamw") == pytest.approx(losses(trained(1) / "adamw"), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_worker_states_its_processor_time(trained: Trained, size: int) -> None:
    cost = json.loads((trained(size) / "whole" / "final" / "log" / "cost.json").read_text())
    assert cost["workers"] == len(cost["worker_cpu_seconds"]) == size
