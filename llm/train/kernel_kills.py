"""Memory that runs out without an error: the kernel ends a worker, which then looks like any other lost one.

Its counter tells. An attempt notes it in the work folder and takes the note away when it is through; one that finds the
note of an attempt that was not, and a counter that has grown since, passes half as many rows at once.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from llm.train.job import TrainJob
from llm.train.micro_batch import fitting_size, remember
from llm.train.parallel.world import World

log = logging.getLogger(__name__)

COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # of this container, else of the whole machine


def kernel_kills() -> int:
    """How many processes the kernel has ended for lack of memory; 0 on a system that doesn't count them."""
    for path in COUNTERS:
        if path.is_file() and (found := re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)):
            return int(found[1])
    return 0


@contextlib.contextmanager
def heeded(job: TrainJob, world: World) -> Iterator[None]:
    """An attempt, with half the rows per pass of the one before if the kernel ended that one on a machine of this group.

    On a GPU it isn't rows that fill the memory of the machine, so nothing is changed there.
    """
    note, kills = job.work / f"kernel_kills-{socket.gethostname()}", kernel_kills()
    before = int(note.read_text() or kills) if note.exists() else kills
    struck = world.sum(float(kills > before))[0] > 0 and world.device.type == "cpu"
    if struck:
        world.first(lambda: _halve(job))
    note.write_text(str(kills))
    yield
    note.unlink(missing_ok=True)  # not after an error: it may follow from the end of another worker


def _halve(job: TrainJob) -> None:
    size = max(1, fitting_size(job.work, job.train.micro_batch_size) // 2)
    log.warning("the kernel ended the attempt before for lack of memory: this one passes %d rows at once", size)
    remember(job.work, size)
