"""Ends a worker that hangs: stacks of all threads into a file, then the process, so that the group starts again.

A worker that waits in a collective for one that has stopped never returns by itself, and a thread that holds Python's
lock for ever stops every other Python thread. The clock is therefore faulthandler's thread in C, which needs neither.
It is wound again whenever an activity begins, and ends the process with status 1 where one lasts too long.
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from types import MappingProxyType, TracebackType
from typing import NamedTuple

USUAL_FACTOR = 10  # how many usual durations of an activity are too long
FIRST_SECONDS = 300.0  # for the first of an activity: compilation, first reads, first connections
REMEMBERED = 64  # durations of an activity that say what is usual
WIND_SECONDS = 1.0  # winding costs a thread, so short activities share one
HUNG = re.compile(r"^worker (\d+), process +\d+, step +(\d+), (\w+) *\nTimeout ", re.MULTILINE)  # `_line`, and what faulthandler adds


class Watchdog:
    """The watch over one worker's activities, from `with` to its end; one per process.

    `folder/watchdog-<rank>.log` says what the worker is doing now. After a hang the stacks stand below; a clean end removes
    the line. An infinite limit ends nothing. `limits` are of activities whose length only the recipe knows, as of what
    waits for a disk: they hold from the first one on, whatever is usual.

    Example:
        >>> with Watchdog(Path("work"), rank=0, limit_seconds=45) as dog:  # doctest: +SKIP
        ...     dog.begin("step", 1)
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        limit_seconds: float,
        first_seconds: float = FIRST_SECONDS,
        limits: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.path, self.rank = folder / f"watchdog-{rank}.log", rank
        self.limit_seconds, self.first_seconds, self.limits = limit_seconds, first_seconds, limits
        self.durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self.activity, self.began, self.expires = "", 0.0, 0.0

    def __enter__(self) -> Watchdog:
        self.path.touch()
        self.file = self.path.open("r+b", buffering=0)
        self.start = self.file.seek(0, os.SEEK_END)
        self.file.write(self._line("start", 0))  # faulthandler writes where this ends
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.file.truncate(self.start)
        self.file.close()
        if self.start == 0:
            self.path.unlink(missing_ok=True)

    def begin(self, activity: str, step: int) -> None:
        """The last activity is over, this one begins: it may take `limit` seconds."""
        if self.limit_seconds == math.inf:
            return
        now = time.monotonic()
        if self.activity:
            self.durations[self.activity].append(now - self.began)
        os.pwrite(self.file.fileno(), self._line(activity, step), self.start)
        deadline = now + self.limit(activity)
        if math.isfinite(deadline) and not deadline <= self.expires <= deadline + WIND_SECONDS:
            faulthandler.dump_traceback_later(deadline - now + WIND_SECONDS, exit=True, file=self.file)
            self.expires = deadline + WIND_SECONDS
        self.activity, self.began = activity, now

    def limit(self, activity: str) -> float:
        """Seconds after which this activity counts as hung, and at most a second more."""
        if activity in self.limits:
            return self.limits[activity]
        usual = self.durations[activity]
        return max(self.limit_seconds, USUAL_FACTOR * median(usual)) if usual else max(self.limit_seconds, self.first_seconds)

    def _line(self, activity: str, step: int) -> bytes:
        return f"worker {self.rank}, process {os.getpid():8}, step {step:9}, {activity[:16]:16}\n".encode()


class Hang(NamedTuple):
    """What a watchdog has ended."""

    said: str  # worker, step and activity
    path: Path  # the file with the stacks


def last_hang(folder: Path) -> Hang | None:
    """The newest hang of which a stack stands in this work folder."""
    for path in sorted(folder.glob("watchdog-*.log"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if found := HUNG.findall(path.read_text(errors="replace")):
            worker, step, activity = found[-1]
            return Hang(f"worker {worker} hung in {activity} at step {step}", path)
    return None
