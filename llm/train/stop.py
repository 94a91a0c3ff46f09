"""Ending a training on request, with a checkpoint of the step at hand: a stop loses no step.

    kill -TERM <process>      where the training runs in that process's main thread, or in workers that it drives
    echo why > <work>/.stop   from anywhere that sees the work folder; its first line is the reason
    stops.ask("budget of …")  from inside

One worker that is asked is enough: the workers tell each other, so that all end after the same step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from llm.errors import StoppedError
from llm.train.parallel.world import World

STOP = ".stop"


class StopRequests:
    """What was asked of this worker, and what all workers agree on."""

    def __init__(self, work: Path, world: World) -> None:
        self.file, self.world = work / STOP, world
        self.reason, self.from_file = "", False

    def ask(self, reason: str) -> None:
        """Stop after the step at hand; the first reason is the one that is told."""
        self.reason = self.reason or reason

    def asked(self) -> bool:
        """Whether this worker was asked. Only rank 0 looks for the file: on a shared disk that costs a round trip."""
        if self.world.rank == 0 and not self.reason and (written := written_reason(self.file)):
            self.reason, self.from_file = written, True
        return bool(self.reason)

    def agreed(self) -> bool:
        """Whether any worker was asked; all call it after the same step, and all get the same answer."""
        return self.world.sum(self.asked())[0] > 0

    def error(self, step: int) -> StoppedError:
        """What every worker raises once the checkpoint of `step` is committed; the request is honoured and its file gone."""
        if self.from_file:  # while the checkpoint was written, a reason that ends the run may have taken the place of a lesser one
            self.reason = written_reason(self.file) or self.reason
        reason = next(reason for reason in self.world.gather(self.reason) if reason)
        if self.world.rank == 0:
            self.file.unlink(missing_ok=True)
        return StoppedError(f"training stopped after step {step}", value=reason, remedy="the same command continues from there")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for a request while the block runs."""
        with on_sigterm(lambda: self.ask("SIGTERM")):
            yield


def request(work: Path, reason: str, *, yields: bool = False) -> None:
    """Ask the training in `work` to stop, from any process on any machine that sees the folder.

    The last reason takes the place of an earlier one, but one that `yields` only stands where there is none.
    """
    temporary = work / f".tmp-stop-{uuid.uuid4().hex[:8]}"  # a reader never meets half of a reason
    with contextlib.suppress(FileNotFoundError, FileExistsError):  # the training never began; another reason stands
        try:
            temporary.write_text(reason + "\n", encoding="utf-8")
            (os.link if yields else os.replace)(temporary, work / STOP)
        finally:
            temporary.unlink(missing_ok=True)


def written_reason(file: Path) -> str:
    """The first line of a stop file; empty where there is none, somebody is about to write it, or storage is away."""
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    return ""


@contextlib.contextmanager
def on_sigterm(ask: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGTERM of the block ask for a stop; a second one does what it would have done without.

    Outside the main thread Python allows no handler, and the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        ask()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
