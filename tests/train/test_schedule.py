"""The learning rate against PyTorch's own schedulers."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import RecipeError
from llm.train import schedule
from llm.train.config import TrainConfig


def test_examples() -> None:
    assert doctest.testmod(schedule).failed == 0


def test_decay_is_cosine_annealing_as_torch_computes_it() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80, eta_min=0.03)
    for step in range(20, 101):
        found = schedule.cosine(step, warmup_steps=20, total_steps=100, peak=0.3, floor=0.03)
        assert found == pytest.approx(annealing.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        annealing.step()


@given(warmup_steps=st.integers(0, 50), decay_steps=st.integers(1, 200), floor=st.floats(0, 1))
def test_it_rises_to_the_peak_then_falls_to_the_floor(warmup_steps: int, decay_steps: int, floor: float) -> None:
    total = warmup_steps + decay_steps
    rates = [schedule.cosine(step, warmup_steps=warmup_steps, total_steps=total, peak=1.0, floor=floor) for step in range(total + 1)]
    rising, falling = rates[: warmup_steps + 1], rates[warmup_steps:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert rates[warmup_steps] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(floor, abs=1e-12)


def test_warm_up_without_decay_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.schedule\.warmup_steps"):
        schedule.cosine(1, warmup_steps=10, total_steps=10, peak=1.0, floor=0.0)


def test_the_last_step_of_a_recipe_is_at_the_floor() -> None:
    config = TrainConfig.model_validate(
        {"steps": 40, "global_batch_size": 1, "micro_batch_size": 1, "schedule": {"warmup_steps": 4, "floor_share": 0.25}}
    )
    assert [schedule.share(config, step) for step in (2, 4, 40)] == pytest.approx([0.5, 1.0, 0.25])
