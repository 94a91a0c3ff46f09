"""What is told of every step: its record with a clock in `metrics.jsonl`, a profiler trace on request, and what all of it cost."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from llm import metrics
from llm.data.rows import Rows
from llm.train import schedule
from llm.train.budget import Spent, exceeded
from llm.train.job import TrainJob
from llm.train.meter import Meter
from llm.train.parallel.layout import Layout
from llm.train.patience import Patience, is_away
from llm.train.profile import Trace
from llm.train.state import State
from llm.train.stop import StopRequests

log = logging.getLogger(__name__)


class Records:
    """Records of steps on their way to `metrics.jsonl`: while storage is away they wait, and training goes on."""

    def __init__(self, path: Path, patience: Patience) -> None:
        self.path, self.patience = path, patience
        self.waiting: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Write a record behind those that wait, unless storage is away.

        Raises: OSError for what doesn't pass, as a full disk.
        """
        self.waiting.append(record)
        try:
            self.write()
        except OSError as error:
            if not is_away(error):
                raise

    def write(self) -> None:
        """Write those that wait, in their order; the ones that could not be written go on waiting."""
        while self.waiting:
            metrics.append(self.path, self.waiting[0])
            del self.waiting[0]

    def flush(self) -> None:
        """Write those that wait, however long storage is away."""
        self.patience.retry(self.write)

    def close(self) -> None:
        """Write those that wait a last time, and say how many could not be."""
        with contextlib.suppress(OSError):
            self.write()
        if self.waiting:
            log.warning("%d records of steps could not be written to %s", len(self.waiting), self.path)


class StepLog:
    """The clocks of one attempt. Nothing of it enters the history, which is the same whenever and wherever a job is trained."""

    def __init__(self, job: TrainJob, rows: Rows, layout: Layout, began: float) -> None:
        """`began` is when the attempt did, on the monotonic clock: its first step costs what it took to start."""
        self.job, self.rows, self.world, self.began = job, rows, layout.world, began
        self.ended = began
        self.meter = Meter(
            job.model,
            rows.vocab_size,
            rows.row_tokens,
            layout.world,
            precision=job.train.precision,
            exchanges_last=not layout.shares_parameters,
            objective=job.train.objective,
        )
        self.meter.count_start(time.monotonic() - began)
        records = job.work / "metrics.jsonl"
        self.spent: Spent = layout.world.first(lambda: Spent.recorded(records))
        self.records = Records(records, Patience(job.cluster.storage_patience_seconds))
        self.trace = Trace(job.cluster.profile_steps, job.work, layout.world.rank)

    def begin(self, step: int) -> None:
        """A step begins."""
        self.trace.before(step)

    def end(self, record: dict[str, Any], stops: StopRequests) -> None:
        """A step is over: write it down, add its cost up, and ask for a stop where that reaches the budget."""
        self.trace.after(record["step"])
        readings = self.meter.step(schedule.rows(self.job.train, record["step"]) * self.rows.row_tokens)
        now = time.monotonic()
        seconds, self.ended = round(now - self.ended, 6), now  # from the end of the last step: start and checkpoints cost as well
        self.spent = self.spent.plus(seconds, readings["energy_kwh"])
        cluster, size = self.job.cluster, self.world.size
        gpus = size if self.world.device.type == "cuda" else 0
        if reason := exceeded(cluster.budget, cluster.price, self.spent, gpus=gpus, cores=size * cluster.cpus_per_worker):
            stops.ask(reason)
        if self.world.rank == 0:
            clock = {"seconds": round(time.monotonic() - self.began, 3), "step_seconds": seconds, "steps": self.job.train.steps}
            self.records.add(record | readings | clock)

    def flush(self) -> None:
        """Write the trace, and let every record be written, however long storage is away."""
        self.trace.close()
        self.records.flush()

    def close(self) -> None:
        """Write the trace of a run that ends among the steps to be traced, and the records that wait."""
        self.trace.close()
        self.records.close()

    def cost(self, state: State) -> dict[str, Any]:
        """What the training took, every attempt's recorded steps included."""
        return {
            "workers": self.world.size,
            "device": self.world.device.type,
            "precision": str(state.dtype).removeprefix("torch."),
            "seconds": round(self.spent.seconds, 3),
            "energy_kwh": round(self.spent.kwh, 9),
            "worker_cpu_seconds": [round(seconds, 3) for seconds in self.world.gather(time.process_time())],
        }
