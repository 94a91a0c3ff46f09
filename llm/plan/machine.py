"""The machine that plans, without torch: its GPUs as the driver lists them, its CPU as the kernel does."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from llm.train.config import ClusterConfig


@dataclass(frozen=True)
class Machine:
    """Where a worker would compute."""

    device: Literal["cpu", "cuda"]
    gpu: str = ""  # name, of the first one
    gpus: int = 0
    gpu_memory_bytes: int = 0  # of the smallest one

    def bf16(self, precision: str) -> bool:
        """Whether a `train.precision` multiplies in 16 bits here; as llm/train/precision.py resolves `auto`."""
        if precision == "auto":
            return self.device == "cuda" or cpu_multiplies_bf16()
        return precision != "fp32"


def this(cluster: ClusterConfig) -> Machine:
    """This machine as a `cluster` section would use it: `auto` takes GPUs if there is one for each worker."""
    names, sizes = gpus()
    if cluster.use_gpu is False or len(names) < (cluster.workers if cluster.use_gpu == "auto" else 1):
        return Machine("cpu")
    return Machine("cuda", names[0], len(names), min(sizes))


@cache
def gpus() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and bytes of memory of this machine's NVIDIA GPUs."""
    if not shutil.which("nvidia-smi"):
        return (), ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    rows = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if answer.returncode == 0]
    return tuple(name.strip() for name, _ in rows), tuple(int(mib) * 2**20 for _, mib in rows)


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies bfloat16, in vectors or in tiles."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
