"""The learning rate and the batch of every step: pure functions of the step, so that a resumed run cannot drift."""

from __future__ import annotations

import math

from llm.train.config import TrainConfig


def share(train: TrainConfig, step: int) -> float:
    """The part of its peak that every learning rate has at `step` (1 is the first)."""
    schedule = train.schedule
    warmup, floor = schedule.warmup_steps, schedule.floor_share
    if step < warmup:
        return step / warmup
    passed, remaining = step - warmup, train.steps - step
    progress = passed / (passed + remaining)
    match schedule.kind:
        case "cosine":
            return floor + (1 - floor) * cosine(progress)
        case "linear":
            return floor + (1 - floor) * linear(progress)
        case "wsd":
            return floor + (1 - floor) * stable_then_decay(remaining, decay_steps(train), root=schedule.decay == "1-sqrt")
        case "cyclical":
            return floor + (1 - floor) * triangle(passed, schedule.cycle_steps)
        case "inverse_sqrt":
            return max(floor, inverse_sqrt(step, max(1, warmup)))
        case "step":
            return max(floor, stairs(passed, schedule.step_steps, schedule.step_factor))
        case "constant":
            return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 down to 0.

    Source: SGDR, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.
    Example:
        >>> [round(cosine(progress), 3) for progress in (0, 0.25, 0.5, 1)]
        [1.0, 0.854, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float) -> float:
    """A straight line from 1 down to 0.

    Source: Defazio et al., When, Why and How Much?, https://arxiv.org/abs/2310.07831.
    Example:
        >>> linear(0.25)
        0.75
    """
    return 1 - progress


def inverse_sqrt(step: int, warmup_steps: int) -> float:
    """1 at the end of the warm-up, then falling with the root of the step.

    Source: Attention Is All You Need, https://arxiv.org/abs/1706.03762, eq. 3; as in T5, https://arxiv.org/abs/1910.10683, section 3.1.2.
    Example:
        >>> inverse_sqrt(400, warmup_steps=100)
        0.5
    """
    return math.sqrt(warmup_steps / step)


def stairs(passed_steps: int, step_steps: int, factor: float) -> float:
    """1, times `factor` after every `step_steps`.

    Source: ResNet, https://arxiv.org/abs/1512.03385, section 3.4, divides by 10 at plateaus; here they are equally long.
    Example:
        >>> [stairs(passed, step_steps=10, factor=0.5) for passed in (0, 9, 10, 25)]
        [1.0, 1.0, 0.5, 0.25]
    """
    return float(factor ** (passed_steps // step_steps))


def triangle(passed_steps: int, cycle_steps: int) -> float:
    """From 1 down to 0 and up again, once in `cycle_steps`: the warm-up was the first rise.

    Source: Smith, Cyclical Learning Rates, https://arxiv.org/abs/1506.01186, section 3.1, "triangular".
    Example:
        >>> [triangle(passed, cycle_steps=8) for passed in (0, 2, 4, 6, 8)]
        [1.0, 0.5, 0.0, 0.5, 1.0]
    """
    return abs(1 - 2 * (passed_steps / cycle_steps % 1))


def stable_then_decay(remaining_steps: int, decay_steps: int, *, root: bool) -> float:
    """1 until `decay_steps` remain, then down to 0, on a line or as one minus the root of the decay's progress.

    Source: MiniCPM, https://arxiv.org/abs/2404.06395, section 4.2; the root, Hägele et al.,
    https://arxiv.org/abs/2405.18392, eq. 2.
    Example:
        >>> [stable_then_decay(remaining, 8, root=False) for remaining in (20, 8, 2, 0)]
        [1.0, 1.0, 0.25, 0.0]
        >>> [stable_then_decay(remaining, 8, root=True) for remaining in (20, 8, 6, 0)]
        [1.0, 1.0, 0.5, 0.0]
    """
    progress = max(0.0, 1 - remaining_steps / decay_steps)
    return 1 - (math.sqrt(progress) if root else progress)


def decay_steps(train: TrainConfig) -> int:
    """How long a wsd schedule falls: as set, else a fifth of all steps, within what the warm-up leaves."""
    return train.schedule.decay_steps or min(max(1, train.steps // 5), train.steps - train.schedule.warmup_steps)


def rows(train: TrainConfig, step: int) -> int:
    """Rows of the global batch at `step` (1 is the first).

    A ramp grows from its first batch by that batch's rows at a time, in stages of equal length, so that whatever
    divides the first divides every later one.

    Source: GPT-3, https://arxiv.org/abs/2005.14165, section 2.3.
    """
    if not train.ramp:
        return train.global_batch_size
    leaps = train.global_batch_size // train.ramp.rows - 1
    return train.ramp.rows * (1 + min(leaps, (step - 1) * leaps // train.ramp.steps))


def first_place(train: TrainConfig, step: int) -> int:
    """Rows of all steps before `step`: where its batch begins in the sample stream.

    Every leap of the ramp adds the first batch's rows to each step from the leap on.
    """
    earlier = step - 1
    if not train.ramp:
        return earlier * train.global_batch_size
    leaps = train.global_batch_size // train.ramp.rows - 1
    leapt_at = (-(-leap * train.ramp.steps // leaps) for leap in range(1, leaps + 1))
    return train.ramp.rows * (earlier + sum(max(0, earlier - at) for at in leapt_at))


def check_rows(train: TrainConfig, workers: int, section: str = "train") -> None:
    """Raises: ValueError if the batch, or the ramp's first one, doesn't divide into micro-batches of all workers."""
    per_pass = train.micro_batch_size * workers
    sizes = {"global_batch_size": train.global_batch_size} | ({"ramp.rows": train.ramp.rows} if train.ramp else {})
    for setting, size in sizes.items():
        if size % per_pass:
            raise ValueError(
                f"{workers} workers × {train.micro_batch_size} rows do not divide {size} rows a step; "
                f"set {section}.{setting} to a multiple of {per_pass}"
            )
