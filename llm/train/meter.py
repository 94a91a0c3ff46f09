"""Where the time of a step goes, and what the step used: read between two lines of the loop, without waiting for the GPU.

meter = Meter(model.config, vocab_size, row_tokens, world, precision="bf16")
with meter.phase("data"): ...
record |= meter.step(tokens)               # clears the phases
"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from llm.model import shape
from llm.model.config import ModelConfig
from llm.train import devices
from llm.train.devices import Device
from llm.train.objective.config import ObjectiveConfig
from llm.train.parallel.world import World
from llm.train.precision import Precision, resolve

Phase = Literal["data", "gradient", "communication", "update", "validation", "checkpoint", "start"]
APART: tuple[Phase, ...] = ("validation", "checkpoint", "start")  # what training doesn't have to do
JOULES_PER_KWH = 3.6e6


class Meter:
    """Seconds by phase since the last step, of this worker."""

    def __init__(
        self,
        model: ModelConfig,
        vocab_size: int,
        row_tokens: int,
        world: World,
        *,
        precision: Precision = "fp32",
        exchanges_last: bool = False,
        objective: ObjectiveConfig | None = None,
    ) -> None:
        """`exchanges_last`: workers talk in the last micro-batch alone, as DistributedDataParallel does; it shows what that costs."""
        self.world, self.precision = world, resolved(precision, world.device)
        self.exchanges_last = exchanges_last and world.size > 1
        self.flops_per_token = shape.flops_per_token(shape.of(model, vocab_size, objective), row_tokens)
        self.device = chip(world.device)
        self.seconds: dict[str, float] = {}
        self.marks: list[Any] = []  # seconds, or events of a GPU's queue
        self.began = time.perf_counter()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count what happens inside towards a phase. On a GPU that is the time to queue the work; gaps show where it waits."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: Phase, seconds: float) -> None:
        """Count seconds that were measured elsewhere towards a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def count_start(self, seconds: float) -> None:
        """Let the first step begin with a start that took so long and ends now."""
        self.began -= seconds
        self.add("start", seconds)

    def begin(self) -> None:
        """A pass over the micro-batches of a step begins; the marks of one that ran out of memory are forgotten."""
        self.marks.clear()

    def mark(self) -> None:
        """Remember this moment of the work: of a GPU's queue, where there is one. Before the first micro-batch, and after each.

        The last micro-batch also exchanges gradients: how much longer it took tells how long that takes.
        """
        if self.world.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def step(self, tokens: int) -> dict[str, float]:
        """What the step that ends here did, over all workers, for its record; the next one begins.

        `tokens` are those of the whole group, padding included, since all of them are computed. A start, validation and the
        wait for a checkpoint are shares of the time, but count neither towards tokens per second nor MFU.
        """
        now = time.perf_counter()
        if self.exchanges_last and (waited := exposed_communication(between(self.marks))):
            self.add("communication", waited)
            self.add("gradient", -waited)
        self.marks.clear()
        seconds, phases, self.began, self.seconds = now - self.began, self.seconds, now, {}
        return readings(
            tokens,
            seconds,
            phases,
            flops_per_second=self.device.flops(self.precision) * self.world.size,
            flops_per_token=self.flops_per_token,
            watts=self.device.watts * self.world.size,
        ) | {"memory_bytes": peak_memory_bytes(self.world.device.type)}


def readings(
    tokens: int, seconds: float, phases: Mapping[str, float], *, flops_per_second: float, flops_per_token: float, watts: float
) -> dict[str, float]:
    """A step's record from its seconds.

    Example:
        >>> readings(1000, 3.0, {"data": 0.5, "validation": 1.0}, flops_per_second=1e6, flops_per_token=600, watts=100)
        {'tokens_per_second': 500, 'mfu': 0.3, 'data_share': 0.1667, 'validation_share': 0.3333, 'energy_kwh': 8.33e-05}
    """
    training = max(1e-9, seconds - sum(phases.get(name, 0.0) for name in APART))
    shares = {f"{name}_share": round(spent / seconds, 4) for name, spent in phases.items()}
    return {
        "tokens_per_second": round(tokens / training),
        "mfu": round(tokens * flops_per_token / training / flops_per_second, 4),
        **shares,
        "energy_kwh": float(f"{seconds * watts / JOULES_PER_KWH:.3g}"),
    }


def between(marks: Sequence[Any]) -> list[float]:
    """Seconds between one mark and the next. GPU events must be in the past: the loop has read the loss since."""
    return [
        later - earlier if isinstance(later, float) else earlier.elapsed_time(later) / 1000 for earlier, later in itertools.pairwise(marks)
    ]


def exposed_communication(micro_batch_seconds: Sequence[float]) -> float:
    """Seconds that the last micro-batch took longer than the others: gradients are exchanged in its backward pass alone.

    Nothing with a single micro-batch, where only a profiler tells exchange from arithmetic, nor when it was no slower.

    Example:
        >>> exposed_communication([1.0, 1.0, 1.5])
        0.5
    """
    if len(micro_batch_seconds) < 2:
        return 0.0
    *others, last = micro_batch_seconds
    return max(0.0, last - sum(others) / len(others))


def resolved(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on this device; the others as they are."""
    if precision != "auto":
        return precision
    return "bf16" if resolve("auto", device) == torch.bfloat16 else "fp32"


def chip(device: torch.device) -> Device:
    """The device table's line for a GPU; a CPU is measured, once per process."""
    if device.type == "cuda":
        return devices.gpu(torch.cuda.get_device_name(device))
    return devices.measured_cpu(torch.get_num_threads())


def peak_memory_bytes(device: str) -> int:
    """The most that this process has held: of GPU memory, or of resident memory.

    Not getrusage on Linux: there a process also inherits the peak of the one that started it.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    text = os.pread(_status(), 4096, 0)
    return int(text[text.index(b"VmHWM:") + 6 :].split(None, 1)[0]) * 1024


@cache
def _status() -> int:
    """An open descriptor of what the kernel says about this process."""
    return os.open(Path("/proc/self/status"), os.O_RDONLY | os.O_CLOEXEC)
