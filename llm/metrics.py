"""What a stage cost: wall time, processor time and an energy estimate."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WATTS_PER_CPU_CORE = 12.0  # mid-range server processors: 200–280 W thermal design power over 16–24 cores
WATTS_PER_GPU = 500.0  # the published thermal design power of data-centre GPUs is 400–700 W


class Stopwatch:
    """Seconds since its creation, on clocks that never jump."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), _cpu_seconds()

    def read(self, counts: Mapping[str, Any]) -> dict[str, float]:
        """Wall and processor seconds, and kWh estimated from them.

        Workers on a cluster report their own time, which a stage passes on as counts `worker_cpu_seconds` and
        `gpu_seconds`.
        """
        cpu_seconds = _cpu_seconds() - self.cpu + float(counts.get("worker_cpu_seconds", 0.0))
        joules = cpu_seconds * WATTS_PER_CPU_CORE + float(counts.get("gpu_seconds", 0.0)) * WATTS_PER_GPU
        return {
            "wall_seconds": round(time.monotonic() - self.wall, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            "energy_kwh": round(joules / 3.6e6, 9),
        }


def _cpu_seconds() -> float:
    """Processor time of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line to a metrics file, visible at once to whoever follows it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
