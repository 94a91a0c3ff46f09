"""Learning rate and batch of every step, against the schedulers of PyTorch and transformers and a slow sum."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, CyclicLR, LinearLR, LRScheduler, StepLR
from transformers import optimization

from llm.train import schedule
from llm.train.config import TrainConfig

STEPS, WARMUP = 100, 20
KINDS = ("cosine", "linear", "inverse_sqrt", "step", "cyclical", "wsd", "constant")


def config(kind: str = "cosine", *, steps: int = STEPS, warmup_steps: int = WARMUP, **settings: Any) -> TrainConfig:
    section = {"kind": kind, "warmup_steps": warmup_steps, "floor_share": 0.0} | settings
    return TrainConfig.model_validate({"steps": steps, "global_batch_size": 8, "micro_batch_size": 2, "schedule": section})


def rates(make: Callable[[torch.optim.Optimizer], LRScheduler], first: int) -> list[float]:
    """What a scheduler that starts at step `first` gives for it and every later step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(first, STEPS + 1):
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return found


def test_examples() -> None:
    assert doctest.testmod(schedule).failed == 0


@pytest.mark.parametrize(
    ("train", "make"),
    [
        (config("cosine", floor_share=0.1), lambda o: CosineAnnealingLR(o, T_max=STEPS - WARMUP, eta_min=0.1)),
        (config("linear", floor_share=0.1), lambda o: LinearLR(o, 1.0, 0.1, total_iters=STEPS - WARMUP)),
        (config("step", step_steps=15, step_factor=0.3), lambda o: StepLR(o, step_size=15, gamma=0.3)),
        (
            config("cyclical", cycle_steps=30, floor_share=0.1),
            lambda o: CyclicLR(o, base_lr=0.1, max_lr=1.0, step_size_up=15, cycle_momentum=False, last_epoch=14),
        ),
    ],
    ids=lambda value: value.schedule.kind if isinstance(value, TrainConfig) else "",
)
def test_after_the_warm_up_it_is_the_scheduler_of_torch(train: TrainConfig, make: Callable[[Any], LRScheduler]) -> None:
    found = [schedule.share(train, step) for step in range(WARMUP, STEPS + 1)]
    assert found == pytest.approx(rates(lambda o: _from_peak(o, make), WARMUP), rel=1e-9)


def _from_peak(optimizer: torch.optim.Optimizer, make: Callable[[Any], LRScheduler]) -> LRScheduler:
    for group in optimizer.param_groups:  # a scheduler that starts later than at 0 asks for it
        group["initial_lr"] = group["lr"]
    return ChainedScheduler([make(optimizer)], optimizer=optimizer)


@pytest.mark.parametrize(
    ("train", "make"),
    [
        (config("inverse_sqrt"), lambda o: optimization.get_inverse_sqrt_schedule(o, WARMUP)),
        (config("constant"), lambda o: optimization.get_constant_schedule_with_warmup(o, WARMUP)),
        (config("cosine"), lambda o: optimization.get_cosine_schedule_with_warmup(o, WARMUP, STEPS)),
        (config("linear"), lambda o: optimization.get_linear_schedule_with_warmup(o, WARMUP, STEPS)),
        (
            config("wsd", decay_steps=30),
            lambda o: optimization.get_wsd_schedule(o, WARMUP, 30, num_training_steps=STEPS, decay_type="linear"),
        ),
        (
            config("wsd", decay_steps=30, decay="1-sqrt"),
            lambda o: optimization.get_wsd_schedule(o, WARMUP, 30, num_training_steps=STEPS, decay_type="1-sqrt"),
        ),
    ],
    ids=["inverse_sqrt", "constant", "cosine", "linear", "wsd", "wsd 1-sqrt"],
)
def test_warm_up_and_all_it_is_the_schedule_of_transformers(train: TrainConfig, make: Callable[[Any], LRScheduler]) -> None:
    found = [schedule.share(train, step) for step in range(STEPS + 1)]
    assert found == pytest.approx(rates(make, 0), rel=1e-9, abs=1e-12)


@given(
    kind=st.sampled_from(KINDS),
    warmup_steps=st.integers(0, 50),
    decay_steps=st.integers(1, 200),
    floor=st.floats(0, 1),
    decay=st.sampled_from(["linear", "1-sqrt"]),
)
def test_it_rises_to_the_peak_and_never_leaves_floor_and_peak(
    kind: str, warmup_steps: int, decay_steps: int, floor: float, decay: str
) -> None:
    train = config(kind, steps=warmup_steps + decay_steps, warmup_steps=warmup_steps, floor_share=floor, decay=decay)
    found = [schedule.share(train, step) for step in range(1, train.steps + 1)]
    rising, falling = found[: max(0, warmup_steps - 1)], found[max(0, warmup_steps - 1) :]
    assert rising == sorted(rising)
    assert all(floor - 1e-12 <= share <= 1 + 1e-12 for share in falling)
    if warmup_steps:
        assert falling[0] == pytest.approx(1.0)
    if kind != "cyclical":
        assert falling == sorted(falling, reverse=True)
    if kind in ("cosine", "linear", "wsd"):
        assert falling[-1] == pytest.approx(floor, abs=1e-12)


def test_a_decay_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"set train\.schedule\.decay_steps to 80 or less"):
        config("wsd", decay_steps=81)
    assert schedule.decay_steps(config("wsd")) == 20


def ramped(rows: int, steps: int, batch: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "steps": 1000,
            "global_batch_size": batch,
            "micro_batch_size": 1,
            "ramp": {"rows": rows, "steps": steps},
        }
    )


def test_a_ramp_spends_as_many_steps_on_each_batch_size() -> None:
    train = ramped(4, 30, 16)
    sizes = [schedule.rows(train, step) for step in range(1, 41)]
    assert sizes == [4] * 10 + [8] * 10 + [12] * 10 + [16] * 10


@given(rows=st.integers(1, 12), factor=st.integers(1, 9), steps=st.integers(1, 60))
def test_batches_follow_each_other_without_gap_or_overlap(rows: int, factor: int, steps: int) -> None:
    train = ramped(rows, steps, rows * factor)
    sizes = [schedule.rows(train, step) for step in range(1, steps + 20)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[steps]) == (rows if steps >= factor - 1 else sizes[0], rows * factor)
    assert all(size % rows == 0 for size in sizes)
    assert [schedule.first_place(train, step) for step in range(1, steps + 20)] == [sum(sizes[:done]) for done in range(len(sizes))]


def test_without_a_ramp_every_batch_is_whole() -> None:
    train = config()
    assert {schedule.rows(train, step) for step in (1, 50, 100)} == {8}
    assert [schedule.first_place(train, step) for step in (1, 2, 11)] == [0, 8, 80]


def test_rows_that_workers_cannot_share_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"train\.ramp\.rows to a divisor"):
        ramped(3, 10, 16)
    schedule.check_rows(ramped(4, 10, 16), workers=4)
    with pytest.raises(
        ValueError, match=r"8 workers × 1 rows do not divide 4 rows a step; set finetune\.train\.ramp\.rows to a multiple of 8"
    ):
        schedule.check_rows(ramped(4, 10, 16), workers=8, section="finetune.train")
    with pytest.raises(ValueError, match=r"set train\.global_batch_size to a multiple of 5"):
        schedule.check_rows(ramped(4, 10, 16), workers=5)
