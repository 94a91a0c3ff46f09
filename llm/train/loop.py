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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llm import artifact, metrics
from llm.data.rows import Rows
from llm.errors import DataError
from llm.model import weights
from llm.model.moe import update_biases
from llm.train import early_stopping, optimizer, precision, schedule
from llm.train.agreement import check_agreement
from llm.train.batch import Batch
from llm.train.checkpoint import HISTORY, Checkpoints, Retention, sole_writer, write_history
from llm.train.guard import Action, Guard, skip_record
from llm.train.job import TrainJob as TrainJob
from llm.train.job import check_sizes, initial_model
from llm.train.learner import Learner
from llm.train.micro_batch import fitting_size, within_memory
from llm.train.objective import kinds
from llm.train.parallel.gradient import clip_norm
from llm.train.parallel.layout import Layout
from llm.train.parallel.replica import Replica
from llm.train.parallel.world import World
from llm.train.stop import StopRequests
from llm.train.stream import Stream
from llm.train.watchdog import Watchdog


def train(job: TrainJob) -> None:
    """Train to the last step and leave the model in `job.work/final`.

    Raises: DivergenceError if it goes on failing after the guard's returns to a checkpoint, StoppedError if it was
    asked to stop, RecipeError if the sizes don't fit together, DataError if there is nothing to learn from,
    ArtifactError if `work` can't be used, CapacityError if one row doesn't fit into memory.
    """
    world = World.current(job.device)
    with artifact.named_errors(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
        with sole_writer(job.work, world), watch(job, world) as dog:
            guard = None
            while True:
                attempt = Attempt(job, world, dog, guard)
                with contextlib.closing(attempt.checkpoints), attempt.stops.listening():
                    guard = attempt.run()
                if guard is None:
                    return
                del attempt  # its model and optimizer make room for those of the next


class Attempt:
    """One attempt at a job: from its newest checkpoint to its end, or to where the guard sends it back."""

    def __init__(self, job: TrainJob, world: World, dog: Watchdog, sent_back: SentBack | None = None) -> None:
        config = job.train
        self.job, self.world, self.dog, self.began = job, world, dog, time.monotonic()
        self.dog.begin("start", 0)
        rows = Rows.open(job.rows, "train")
        check_sizes(job, rows, world)
        self.layout = Layout.over(world, job.cluster.layout)
        self.objective = kinds.build(config, job.model.architecture, rows.vocab_size, rows.row_tokens)
        self.stream = Stream.open(job.rows, self.objective, job.seed, self.layout)
        self.dtype = precision.resolve(config.precision, world.device)
        self.model = initial_model(job, rows.vocab_size + self.objective.extra_ids).to(world.device).train()
        self.learner = Learner(self.model, self.objective, self.dtype, config.z_loss_weight)
        self.replica = Replica(self.learner, self.layout)
        self.optimizers = optimizer.build(self.model, config.optimizer)
        self.stops = StopRequests(job.work, world)
        self.micro_batch_size = fitting_size(job.work, config.micro_batch_size)
        fingerprint = world.first(lambda: job.fingerprint)  # reads every training row, so once for all workers
        folder, background = job.work / "checkpoints", job.cluster.async_checkpoints
        self.checkpoints = Checkpoints(folder, fingerprint, job.seed, Retention.of(config), world, background=background)
        progress = self.checkpoints.restore(self.model, self.optimizers) or {"history": [], "guard": None}
        self.history: list[dict[str, Any]] = progress["history"]
        self.guard = Guard(config.guard, progress["guard"])
        if sent_back:
            failed_rows = schedule.first_place(config, sent_back.step + 1) - schedule.first_place(config, len(self.history) + 1)
            self.guard = sent_back.guard.rolled_back(progress["guard"], failed_rows)
        self.replica.rehearse(self.stream.sample())

    def run(self) -> SentBack | None:
        """Every step that is left, with validation and checkpoints in their turn; who sends it back, if it doesn't end."""
        config = self.job.train
        while len(self.history) < config.steps and not early_stopping.finished(self.history, config):
            step, started = len(self.history) + 1, time.monotonic()
            self.dog.begin("step", step)
            record, action = self.update(step)
            if action is Action.ROLL_BACK:
                return SentBack(step, self.guard)
            if step % config.validate_every_steps == 0 or step == config.steps:
                self.dog.begin("validation", step)
                record |= self.validate()
            self.history.append(record)
            self.report(record, seconds=time.monotonic() - started)
            self.keep(step)
        self.checkpoints.wait()
        self.finish()
        return None

    def keep(self, step: int) -> None:
        """A checkpoint, where one is due and the run is healthy, or a stop was asked for.

        Raises: StoppedError in the latter case.
        """
        config, stop = self.job.train, self.stops.agreed()
        due = step % config.checkpoint_every_steps == 0 or step == config.steps
        if (due and self.guard.healthy) or stop:
            self.dog.begin("checkpoint", step)
            self.checkpoints.save(step, self.model, self.optimizers, {"history": self.history, "guard": self.guard.state})
        if stop and step < config.steps:
            self.checkpoints.wait()
            raise self.stops.error(step)

    def update(self, step: int) -> tuple[dict[str, Any], Action]:
        """One optimizer update: batch, gradient, clipping, learning rate, step. What happened, and what the guard says to it.

        Raises: DivergenceError before anything is applied, on every worker alike.
        """
        config, share = self.job.train, schedule.share(self.job.train, step)
        torch.manual_seed(int(np.random.SeedSequence((self.job.seed, step, self.world.rank)).generate_state(1, np.uint64)[0]))
        first, count = schedule.first_place(config, step) + self.guard.skipped_rows, schedule.rows(config, step)
        (losses, targets), self.micro_batch_size = within_memory(
            lambda size: self.gradient(self.stream.training(first, count, size)), self.micro_batch_size, self.job.work, self.world
        )
        norm = clip_norm(self.model.parameters(), config.clip_norm, self.layout)
        verdict = self.guard.judge(step, losses["loss"], norm)
        if verdict.action is Action.APPLY:
            self.apply(step, share)
        self.model.zero_grad()
        seen = self.history[-1]["tokens"] if self.history else 0
        if verdict.action is not Action.APPLY:
            return skip_record(step, verdict, losses["loss"], norm, self.stream.indices(first, count).tolist()) | {"tokens": seen}, verdict.action
        rate = share * optimizer.peak_learning_rate(config.optimizer)
        alerts = {"alerts": list(verdict.alerts)} if verdict.alerts else {}
        return losses | {"step": step, "learning_rate": rate, "grad_norm": norm, "tokens": seen + targets} | alerts, verdict.action

    def apply(self, step: int, share: float) -> None:
        """Move the parameters, at this share of the peak learning rates; now and then, compare them with the other copies'."""
        optimizer.set_learning_rates(self.optimizers, share)
        for each in self.optimizers:
            each.step()
        update_biases(self.model, lambda load_E: load_E.new_tensor(self.world.sum(load_E)[0]))
        if step % self.job.train.guard.hash_every_steps == 0 and self.layout.sizes["dp_replicate"] > 1:
            check_agreement(step, self.model, self.layout.group("dp_replicate"))

    def gradient(self, batches: list[Batch]) -> tuple[dict[str, float], int]:
        """Gradient of the mean loss over every counted target of the global batch; its terms, and those targets' number.

        Exact per token: sums of nats are divided by counts over all workers and micro-batches, so neither changes
        the gradient.
        """
        self.model.zero_grad()
        counts = self.totals([self.learner.counts(batch) for batch in batches])
        if not counts["loss"]:
            raise DataError("a batch has no target that counts", value=self.job.rows, remedy="set train.global_batch_size higher")
        scales = {term: weight / max(1, counts[term]) for term, weight in self.learner.weights.items()}
        sums = self.totals([self.replica.accumulate(batches, scales)])
        return {term: sums[term] / max(1, counts[term]) for term, weight in self.learner.weights.items() if weight}, int(counts["loss"])

    def totals(self, parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """By term of the loss, the parts of all workers added up."""
        terms = list(self.learner.weights)
        return dict(zip(terms, self.layout.sum(*(sum(part.get(term, 0) for part in parts) for term in terms)), strict=True))

    def validate(self) -> dict[str, float]:
        """Mean loss over the first `validation_rows` rows of the validation split; nothing if no target counts."""
        batches = self.stream.validation(self.job.train.validation_rows, self.micro_batch_size)
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


@dataclass(frozen=True)
class SentBack:
    """A run that the guard sends back to a checkpoint, from this step."""

    step: int
    guard: Guard


def watch(job: TrainJob, world: World) -> Watchdog:
    """The watch over this worker; a worker alone waits for nobody, so nothing ends the process that it shares with a flow."""
    limit = job.cluster.step_timeout_seconds if world.size > 1 else math.inf
    return Watchdog(job.work, world.rank, limit)
