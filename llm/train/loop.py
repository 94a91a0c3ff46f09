"""The one training loop: pretraining and fine-tuning differ in rows and initial weights, never here.

    job = TrainJob(rows=..., model=..., train=..., seed=1, work=Path("work"))
    train(job)                                  # alone, or in every process of an initialised process group

Killed at any moment and called again, it continues from the newest checkpoint in `work`, and ends with the
same weights and history as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from llm import artifact, metrics
from llm.data.rows import Rows
from llm.errors import DataError, DivergenceError
from llm.model import weights
from llm.train import optimizer, precision, schedule
from llm.train.batch import Batch
from llm.train.checkpoint import HISTORY, Checkpoints, Retention, sole_writer, write_history
from llm.train.job import TrainJob as TrainJob
from llm.train.job import check_sizes, initial_model
from llm.train.learner import Learner
from llm.train.objective import kinds
from llm.train.parallel.replica import Replica
from llm.train.parallel.world import World
from llm.train.stop import StopRequests
from llm.train.stream import Stream


def train(job: TrainJob) -> None:
    """Train to the last step and leave the model in `job.work/final`.

    Raises: DivergenceError if loss or gradient leaves the finite numbers (that step is not applied), RecipeError
    if the sizes don't fit together, DataError if there is nothing to learn from, ArtifactError if `work` can't be used.
    """
    world = World.current(job.device)
    with artifact.named_errors(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
        with sole_writer(job.work, world):
            attempt = Attempt(job, world)
            with contextlib.closing(attempt.checkpoints), attempt.stops.listening():
                attempt.run()


class Attempt:
    """One attempt at a job: from its newest checkpoint to its end."""

    def __init__(self, job: TrainJob, world: World) -> None:
        self.job, self.world, self.began = job, world, time.monotonic()
        rows = Rows.open(job.rows, "train")
        check_sizes(job, rows, world)
        self.objective = kinds.build(job.train, job.model.architecture, rows.vocab_size, rows.row_tokens)
        self.stream = Stream.open(job.rows, self.objective, job.seed, world)
        self.dtype = precision.resolve(job.train.precision, world.device)
        self.model = initial_model(job, rows.vocab_size + self.objective.extra_ids).to(world.device).train()
        self.learner = Learner(self.model, self.objective, self.dtype, job.train.z_loss_weight)
        self.replica = Replica(self.learner, world)
        self.optimizers = optimizer.build(self.model, job.train.optimizer)
        fingerprint = world.first(lambda: job.fingerprint)  # reads every training row, so once for all workers
        folder, background = job.work / "checkpoints", job.cluster.async_checkpoints
        self.checkpoints = Checkpoints(folder, fingerprint, job.seed, Retention.of(job.train), world, background=background)
        progress = self.checkpoints.restore(self.model, self.optimizers) or {"history": []}
        self.history: list[dict[str, Any]] = progress["history"]
        self.stops = StopRequests(job.work, world)
        self.replica.rehearse(self.stream.sample())

    def run(self) -> None:
        """Every step that is left, with validation and checkpoints in their turn."""
        config = self.job.train
        for step in range(len(self.history) + 1, config.steps + 1):
            started = time.monotonic()
            record = self.update(step)
            if step % config.validate_every_steps == 0 or step == config.steps:
                record |= self.validate()
            self.history.append(record)
            self.report(record, seconds=time.monotonic() - started)
            stopping = step < config.steps and self.stops.agreed()
            if stopping or step % config.checkpoint_every_steps == 0 or step == config.steps:
                self.checkpoints.save(step, self.model, self.optimizers, {"history": self.history})
            if stopping:
                self.checkpoints.wait()
                raise self.stops.error(step)
        self.checkpoints.wait()
        self.finish()

    def update(self, step: int) -> dict[str, Any]:
        """One optimizer update: batch, gradient, clipping, learning rate, step.

        Raises: DivergenceError before anything is applied, on every worker alike.
        """
        config, share = self.job.train, schedule.share(self.job.train, step)
        torch.manual_seed(int(np.random.SeedSequence((self.job.seed, step, self.world.rank)).generate_state(1, np.uint64)[0]))
        batches = self.stream.training((step - 1) * config.global_batch_size, config.global_batch_size, config.micro_batch_size)
        losses, targets = self.gradient(batches)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm).item()
        check_finite(step, losses["loss"], norm)
        optimizer.set_learning_rates(self.optimizers, share)
        for each in self.optimizers:
            each.step()
        self.model.zero_grad()
        seen = self.history[-1]["tokens"] if self.history else 0
        rate = share * optimizer.peak_learning_rate(config.optimizer)
        return losses | {"step": step, "learning_rate": rate, "grad_norm": norm, "tokens": seen + targets}

    def gradient(self, batches: list[Batch]) -> tuple[dict[str, float], int]:
        """Gradient of the mean loss over every counted target of the global batch; its terms, and those targets' number.

        Exact per token: sums of nats are divided by counts over all workers and micro-batches, so neither changes
        the gradient.
        """
        counts = self.totals([self.learner.counts(batch) for batch in batches])
        if not counts["loss"]:
            raise DataError("a batch has no target that counts", value=self.job.rows, remedy="set train.global_batch_size higher")
        scales = {term: weight / max(1, counts[term]) for term, weight in self.learner.weights.items()}
        sums = self.totals([self.replica.accumulate(batches, scales)])
        return {term: sums[term] / max(1, counts[term]) for term, weight in self.learner.weights.items() if weight}, int(counts["loss"])

    def totals(self, parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """By term of the loss, the parts of all workers added up."""
        terms = list(self.learner.weights)
        return dict(zip(terms, self.world.sum(*(sum(part.get(term, 0) for part in parts) for term in terms)), strict=True))

    def validate(self) -> dict[str, float]:
        """Mean loss over the first `validation_rows` rows of the validation split; nothing if no target counts."""
        batches = self.stream.validation(self.job.train.validation_rows, self.job.train.micro_batch_size)
        counts = self.totals([self.learner.counts(batch) for batch in batches])
        sums = self.totals(self.replica.evaluate(batches))
        return {"validation_loss": sums["loss"] / counts["loss"]} if counts["loss"] else {}

    def report(self, record: dict[str, Any], *, seconds: float) -> None:
        """Append the step to `metrics.jsonl`, with the clock that must not enter the history."""
        if self.world.rank == 0:
            tokens_per_second = self.job.train.global_batch_size * self.stream.rows.row_tokens / seconds
            clock = {"seconds": round(time.monotonic() - self.began, 3), "tokens_per_second": round(tokens_per_second)}
            metrics.append(self.job.work / "metrics.jsonl", record | clock | {"steps": self.job.train.steps})

    def finish(self) -> None:
        """Write `final/`: the model, its history, and what it cost."""
        cost = {
            "workers": self.world.size,
            "device": self.world.device.type,
            "precision": str(self.dtype).removeprefix("torch."),
            "seconds": round(time.monotonic() - self.began, 3),
            "worker_cpu_seconds": [round(seconds, 3) for seconds in self.world.gather(time.process_time())],
        }
        self.world.first(lambda: self.write_final(cost))

    def write_final(self, cost: dict[str, Any]) -> None:
        temporary, final = self.job.work / ".tmp-final", self.job.work / "final"
        for old in (temporary, final):
            shutil.rmtree(old, ignore_errors=True)
        (temporary / "log").mkdir(parents=True)
        weights.save(self.model, temporary)
        write_history(temporary / HISTORY, self.history)
        artifact.write_json(temporary / "log" / "cost.json", cost)
        temporary.rename(final)


def check_finite(step: int, loss: float, norm: float) -> None:
    """Raises: DivergenceError if a number is infinite or NaN."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergenceError(
            f"training diverged at step {step}",
            value=f"loss {loss}, gradient norm {norm}",
            remedy="set train.optimizer.muon_learning_rate and adamw_learning_rate lower, or train.schedule.warmup_steps higher",
        )
