"""What is told of every step: its record with a clock in `metrics.jsonl`, a profiler trace on request, and what all of it cost."""

from __future__ import annotations

import time
from typing import Any

from llm import metrics
from llm.data.rows import Rows
from llm.train import schedule
from llm.train.budget import exceeded
from llm.train.job import TrainJob
from llm.train.meter import Meter
from llm.train.parallel.layout import Layout
from llm.train.patience import Patience
from llm.train.profile import Trace
from llm.train.state import State
from llm.train.stop import StopRequests


class StepLog:
    """The clocks of one attempt. Nothing of it enters the history, which is the same whenever and wherever a job is trained."""

    def __init__(self, job: TrainJob, rows: Rows, layout: Layout) -> None:
        self.job, self.rows, self.world, self.began = job, rows, layout.world, time.monotonic()
        self.ended = self.began
        self.meter = Meter(
            job.model,
            rows.vocab_size,
            rows.row_tokens,
            layout.world,
            precision=job.train.precision,
            exchanges_last=not layout.shares_parameters,
            objective=job.train.objective,
        )
        self.patience = Patience(job.cluster.storage_patience_seconds)
        self.trace = Trace(job.cluster.profile_steps, job.work, layout.world.rank)

    def begin(self, step: int) -> None:
        """A step begins."""
        self.trace.before(step)

    def end(self, record: dict[str, Any], state: State, stops: StopRequests) -> None:
        """A step is over: write it down, add its cost up, and ask for a stop where that reaches the budget."""
        self.trace.after(record["step"])
        readings = self.meter.step(schedule.rows(self.job.train, record["step"]) * self.rows.row_tokens)
        now = time.monotonic()
        seconds, self.ended = now - self.ended, now  # from the end of the last step: start and checkpoints cost as well
        state.spent = state.spent.plus(seconds, readings["energy_kwh"])
        cluster, size = self.job.cluster, self.world.size
        gpus = size if self.world.device.type == "cuda" else 0
        if reason := exceeded(cluster.budget, cluster.price, state.spent, gpus=gpus, cores=size * cluster.cpus_per_worker):
            stops.ask(reason)
        if self.world.rank == 0:
            clock = {"seconds": round(time.monotonic() - self.began, 3), "step_seconds": round(seconds, 6), "steps": self.job.train.steps}
            self.patience.with_(lambda: metrics.append(self.job.work / "metrics.jsonl", record | readings | clock))

    def close(self) -> None:
        """Write the trace of a run that ends among the steps to be traced."""
        self.trace.close()

    def cost(self, state: State) -> dict[str, Any]:
        """What the training took, every attempt's counted steps included."""
        return {
            "workers": self.world.size,
            "device": self.world.device.type,
            "precision": str(state.dtype).removeprefix("torch."),
            "seconds": round(state.spent.seconds, 3),
            "energy_kwh": round(state.spent.kwh, 9),
            "worker_cpu_seconds": [round(seconds, 3) for seconds in self.world.gather(time.process_time())],
        }
