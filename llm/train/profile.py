"""A trace of a few steps on request, for a browser (chrome://tracing, ui.perfetto.dev), and its heaviest operators as text."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

HEAVIEST = 10
TRACES = "trace-*"  # their names in a work folder


class Trace:
    """Traces steps `first` to `last` of one worker into `work`/trace-<rank>.json.gz and .txt; without steps, nothing."""

    def __init__(self, steps: tuple[int, int] | None, work: Path, rank: int) -> None:
        self.steps, self.work, self.rank = steps, work, rank
        self.running: profile | None = None

    def before(self, step: int) -> None:
        """Begin, if it is the first step to trace, or a later one in which a resumed run finds itself."""
        if self.steps and self.running is None and self.steps[0] <= step <= self.steps[1]:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
            self.running = profile(activities=activities)
            self.running.start()

    def after(self, step: int) -> None:
        """End and write, if it was the last step to trace."""
        if self.steps and step >= self.steps[1]:
            self.close()

    def close(self) -> None:
        """End and write what there is, if anything is being traced."""
        if self.running is not None:
            self.running.stop()
            self._write(self.running)
            self.running = None

    def _write(self, finished: profile) -> None:
        raw, packed = (self.work / f".tmp-trace-{self.rank}.json{suffix}" for suffix in ("", ".gz"))
        finished.export_chrome_trace(str(raw))
        with raw.open("rb") as source, gzip.open(packed, "wb") as target:
            shutil.copyfileobj(source, target)
        raw.unlink()
        (self.work / f"trace-{self.rank}.txt").write_text(heaviest(finished), encoding="utf-8")
        packed.rename(self.work / f"trace-{self.rank}.json.gz")


def heaviest(finished: profile) -> str:
    """The operators that took most of the device's own time, a line each."""
    on_gpu = torch.cuda.is_available()
    events = finished.key_averages()
    times = {event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count) for event in events}
    total = sum(microseconds for microseconds, _ in times.values()) or 1.0
    most = sorted(times.items(), key=lambda item: -item[1][0])[:HEAVIEST]
    lines = [f"{microseconds / 1000:10.1f} ms  {microseconds / total:6.1%}  {count:7} ×  {name}" for name, (microseconds, count) in most]
    return "\n".join(lines) + "\n"
