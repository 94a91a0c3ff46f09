"""What chips can do, from their data sheets: what plans expect and meters compare with."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from functools import cache

from llm.errors import RecipeError
from llm.metrics import WATTS_PER_CPU_CORE, WATTS_PER_GPU


@dataclass(frozen=True)
class Device:
    """One chip, or one core of a CPU. Rates are dense, without sparsity; a format that the chip lacks has its next one's rate."""

    name: str
    bf16_flops: float  # per second
    fp8_flops: float
    fp32_flops: float  # with TF32 where there is one, as torch is told to use it
    memory_gib: float
    memory_bandwidth: float  # bytes per second
    link_bandwidth: float  # to the other GPUs of a machine, bytes per second in each direction
    watts: float

    def flops(self, precision: str) -> float:
        """Peak per second in the format of matrix products."""
        return {"fp32": self.fp32_flops, "fp8": self.fp8_flops}.get(precision, self.bf16_flops)


# NVIDIA's data sheets: dense rates, SXM variants unless the name says otherwise; NVLink and PCIe one way.
DEVICES = (
    Device("B200", 2250e12, 4500e12, 1100e12, 180, 7.7e12, 900e9, 1000),
    Device("GB200", 2500e12, 5000e12, 1250e12, 186, 8.0e12, 900e9, 1200),
    Device("GH200", 989e12, 1979e12, 495e12, 96, 4.0e12, 450e9, 700),
    Device("H200", 989e12, 1979e12, 495e12, 141, 4.8e12, 450e9, 700),
    Device("H100 PCIe", 756e12, 1513e12, 378e12, 80, 2.0e12, 64e9, 350),
    Device("H100", 989e12, 1979e12, 495e12, 80, 3.35e12, 450e9, 700),
    Device("A100", 312e12, 312e12, 156e12, 80, 2.0e12, 300e9, 400),
    Device("L40S", 362e12, 733e12, 183e12, 48, 0.864e12, 32e9, 350),
    Device("L4", 121e12, 242e12, 60e12, 24, 0.3e12, 32e9, 72),
    Device("A10", 125e12, 125e12, 62e12, 24, 0.6e12, 32e9, 150),
    Device("A10G", 70e12, 70e12, 35e12, 24, 0.6e12, 32e9, 300),
    Device("V100", 125e12, 125e12, 15.7e12, 32, 0.9e12, 150e9, 300),
    Device("T4", 65e12, 65e12, 8.1e12, 16, 0.32e12, 16e9, 70),
    Device("RTX 4090", 165e12, 330e12, 82e12, 24, 1.0e12, 32e9, 450),
    Device("RTX 3090", 71e12, 71e12, 35.5e12, 24, 0.936e12, 32e9, 350),
)
A100 = next(device for device in DEVICES if device.name == "A100")
UNKNOWN_GPU = replace(A100, name="unknown GPU", watts=WATTS_PER_GPU)
CPU_CORE = Device("CPU core", 100e9, 100e9, 50e9, 0, 10e9, 10e9, WATTS_PER_CPU_CORE)  # AVX2 at 3 GHz; `measured_cpu` knows better


def named(name: str) -> Device:
    """The device whose name is part of this one, word by word, as torch or a person gives it.

    Raises: RecipeError if none is.
    Example:
        >>> named("NVIDIA H100 80GB HBM3").bf16_flops / 1e12
        989.0
    """
    found = _find(name)
    if found is None:
        raise RecipeError("unknown GPU", value=name, remedy=f"name one of {', '.join(device.name for device in DEVICES)}")
    return found


def gpu(name: str) -> Device:
    """The same for a GPU that is there: one that no table knows is taken for an A100, and says so in its name."""
    return _find(name) or replace(UNKNOWN_GPU, name=f"{name} (taken for an A100)")


def multiplies_float8(name: str) -> bool | None:
    """Whether a GPU of this name has float8 matrix products, twice as fast as bfloat16; None for one that no table knows."""
    found = _find(name)
    return found.fp8_flops > found.bf16_flops if found else None


def _find(name: str) -> Device | None:
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((device for device in DEVICES if words.issuperset(device.name.lower().split())), None)


@cache
def measured_cpu(threads: int) -> Device:
    """This machine's CPU on so many threads, by its fastest of a few matrix products; takes about 0.1 s, once per process."""
    import torch

    rates = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.ones(512, 512, dtype=dtype) for _ in range(2))
        torch.mm(left, right)
        seconds = []
        deadline = time.perf_counter() + 0.05
        while time.perf_counter() < deadline:
            began = time.perf_counter()
            torch.mm(left, right)
            seconds.append(time.perf_counter() - began)
        rates[precision] = 2 * 512**3 / min(seconds)
    best = max(rates.values())
    return replace(
        CPU_CORE,
        name=f"this CPU, {threads} threads" if threads > 1 else "this CPU, 1 thread",
        bf16_flops=rates["bf16"],
        fp8_flops=best,
        fp32_flops=rates["fp32"],
        watts=WATTS_PER_CPU_CORE * threads,
    )
