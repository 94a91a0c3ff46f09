"""The one training loop: pretraining and fine-tuning differ in rows, objective and initial weights, never here.

    job = TrainJob(rows=..., model=..., train=..., seed=1, work=Path("work"))
    train(job)                                  # alone, or in every process of an initialised process group

Killed at any moment and called again, it continues from the newest checkpoint in `work`, and ends with the
same weights and history as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from llm import artifact
from llm.errors import DataError
from llm.model.moe import forget_loads, update_biases
from llm.train import early_stopping, optimizer, result, schedule
from llm.train.agreement import check_agreement
from llm.train.checkpoint import sole_writer
from llm.train.guard import Action, Verdict, skip_record
from llm.train.job import TrainJob, check_sizes
from llm.train.kernel_kills import heeded
from llm.train.micro_batch import fitting_size, within_memory
from llm.train.parallel.gradient import clip_norm
from llm.train.parallel.layout import Layout
from llm.train.parallel.world import World
from llm.train.state import State
from llm.train.step_log import StepLog
from llm.train.stop import StopRequests
from llm.train.stream import Stream
from llm.train.watchdog import Watchdog


def train(job: TrainJob) -> None:
    """Train to the last step and leave the model in `job.work/final`; of 0 steps, the initial weights as they are.

    Raises: DivergenceError if it goes on failing after the guard's returns to a checkpoint, StoppedError if it was
    asked to stop, RecipeError if the sizes don't fit together, DataError if there is nothing to learn from,
    ArtifactError if `work` can't be used, CapacityError if one row doesn't fit into memory.
    """
    world = World.current(job.device)
    with artifact.named_errors(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
        with sole_writer(job.work, world), watch(job, world) as dog, heeded(job, world):
            attempt = Attempt(job, world, dog)
            with contextlib.closing(attempt), attempt.stops.listening():
                attempt.run()


def watch(job: TrainJob, world: World) -> Watchdog:
    """The watch over this worker; none over one without a process group, which may be a flow's or a notebook's own process."""
    slow = dict.fromkeys(("load", "write", "result"), job.cluster.write_timeout_seconds)
    return Watchdog(job.work, world.rank, job.cluster.step_timeout_seconds if dist.is_initialized() else math.inf, limits=slow)


class Attempt:
    """One attempt at a job: from its newest checkpoint to its end."""

    def __init__(self, job: TrainJob, world: World, dog: Watchdog) -> None:
        self.job, self.world, self.dog, began = job, world, dog, time.monotonic()
        self.dog.begin("start", 0)
        check_sizes(job, world)
        self.layout = Layout.over(world, job.cluster.layout)
        self.stops = StopRequests(job.work, world)
        rows = math.ceil(job.train.global_batch_size / self.layout.data_size)
        self.micro_batch_size = fitting_size(job.work, job.train.micro_batch_size, rows)
        self.beside = contextlib.ExitStack()  # ends what runs beside the steps
        self.resume(0)
        self.log = StepLog(job, self.stream.rows, self.layout, began)
        self.meter = self.log.meter

    def resume(self, step: int) -> None:
        """The state of the newest checkpoint, or the first one."""
        self.dog.begin("load", step)
        self.state = State(self.job, self.layout)
        self.beside.callback(self.state.checkpoints.close)
        self.dog.begin("rehearsal", step)
        self.stream = Stream.open(self.job, self.state.objective, self.layout)
        self.state.replica.rehearse(self.stream.sample())

    def run(self) -> None:
        """Every step that is left, with validation and checkpoints in their turn."""
        config = self.job.train
        while (step := len(self.state.history) + 1) <= config.steps and not early_stopping.finished(self.state.history, config):
            self.log.begin(step)
            self.dog.begin("step", step)
            record, action = self.update(step)
            if action is Action.ROLL_BACK:
                self.log.end(record, self.stops)
                self.go_back(step)
                continue
            if step % config.validate_every_steps == 0 or step == config.steps:
                record |= self.validate(step)
            self.state.history.append(record)
            self.log.end(record, self.stops)
            self.keep(step)
        self.wait(config.steps)
        self.dog.begin("result", config.steps)
        self.log.flush()
        if config.stop_after_validations:
            self.state.return_to_best()
        place = schedule.first_place(config, len(self.state.history) + 1) + self.state.guard.skipped_rows
        read = {"rows_read": place, "rollbacks": self.state.guard.state["rollbacks"]} | self.stream.realised(place)
        result.write(self.state, self.layout, self.job.work, self.log.cost(self.state) | read)

    def update(self, step: int) -> tuple[dict[str, Any], Action]:
        """One optimizer update: batch, gradient, clipping, judgement, step; what happened, and what the guard says to it.

        Raises: DivergenceError before anything is applied, on every worker alike.
        """
        config, state = self.job.train, self.state
        first, count = schedule.first_place(config, step) + state.guard.skipped_rows, schedule.rows(config, step)
        (losses, targets), self.micro_batch_size = within_memory(
            lambda size: self.gradient(step, first, count, size), self.micro_batch_size, self.job.work, self.world
        )
        with self.meter.phase("update"):
            state.loss_scale.unscale(state.parameters())
            norm = clip_norm(state.parameters(), config.clip_norm, self.layout)
            verdict = self.judge(step, losses["loss"], norm)
            if verdict.action is Action.APPLY:
                rate = self.apply(step)
            state.model.zero_grad()
        seen = state.history[-1]["tokens"] if state.history else 0
        if verdict.action is not Action.APPLY:
            rows = self.stream.indices(first, count).tolist()
            return skip_record(step, verdict, losses["loss"], norm, rows) | {"tokens": seen}, verdict.action
        alerts = {"alerts": list(verdict.alerts)} if verdict.alerts else {}
        return losses | {"step": step, "learning_rate": rate, "grad_norm": norm, "tokens": seen + targets} | alerts, verdict.action

    def gradient(self, step: int, first: int, count: int, size: int) -> tuple[dict[str, float], int]:
        """Gradient of the mean loss over every counted target of these places' rows, `size` at once; its terms, what its
        routers did, and the targets' number.

        Exact per token: sums of nats are divided by counts over all workers and micro-batches, so neither changes
        the gradient.
        """
        state = self.state
        torch.manual_seed(int(np.random.SeedSequence((self.job.seed, step, self.world.rank)).generate_state(1, np.uint64)[0]))
        with self.meter.phase("data"):
            batches = self.stream.training(first, count, size)
        state.model.zero_grad()
        forget_loads(state.model)
        self.meter.begin()
        counts = self.totals([state.learner.counts(batch) for batch in batches])
        if not counts["loss"]:
            raise DataError("a batch has no target that counts", value=self.job.rows, remedy="set train.global_batch_size higher")
        means = {term: weight / max(1, counts[term]) for term, weight in state.learner.weights.items()}
        scales = {term: mean * state.loss_scale.scale for term, mean in means.items()}
        with self.meter.phase("gradient"):
            sums = self.totals([state.replica.accumulate(batches, scales, self.meter.mark)])
            routers = state.learner.statistics(self.over_workers)
        return {term: sums[term] / max(1, counts[term]) for term in sums} | routers, int(counts["loss"])

    def totals(self, parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """By term of the loss, the parts of all workers added up."""
        terms = list(self.state.learner.weights)
        return dict(zip(terms, self.layout.sum(*(sum(part.get(term, 0) for part in parts) for term in terms)), strict=True))

    def over_workers(self, tensor: Tensor) -> Tensor:
        """The tensor added up over all workers."""
        return tensor.new_tensor(self.world.sum(tensor)[0])

    def judge(self, step: int, loss: float, norm: float) -> Verdict:
        """The guard's verdict; where float16 ran over, a smaller scale heals it, and the guard isn't asked."""
        overflow = self.state.loss_scale.scale > 1 and math.isfinite(loss) and not math.isfinite(norm)
        if self.state.dtype == torch.float16:
            self.state.loss_scale = self.state.loss_scale.after(overflow=overflow)
        return Verdict(Action.SKIP, "float16 ran over") if overflow else self.state.guard.judge(step, loss, norm)

    def apply(self, step: int) -> float:
        """Move the parameters; the learning rate."""
        config, state, share = self.job.train, self.state, schedule.share(self.job.train, step)
        optimizer.set_learning_rates(state.optimizers, share)
        for each in state.optimizers:
            each.step()
        update_biases(state.model, self.over_workers)
        if state.average:
            state.average.update(first=not any("learning_rate" in record for record in state.history))
        return share * optimizer.peak_learning_rate(config.optimizer)

    def validate(self, step: int) -> dict[str, float]:
        """Mean loss over the first `validation_rows` rows of the validation split; nothing if no target counts."""
        batches = self.stream.validation(self.job.train.validation_rows, self.micro_batch_size)
        counts = self.totals([self.state.learner.counts(batch) for batch in batches])
        with self.meter.phase("validation"), self.state.averaged():
            sums = self.totals(self.state.replica.evaluate(batches, lambda: self.dog.begin("validation", step)))
        return {"validation_loss": sums["loss"] / counts["loss"]} if counts["loss"] else {}

    def go_back(self, step: int) -> None:
        """Continue from the newest checkpoint, and read on behind the rows of `step`, which the guard refused."""
        guard = self.state.guard
        self.wait(step)
        self.state.checkpoints.discard(guard.state["unhealthy_since"])  # a stop may have made one that the guard distrusts
        self.close()
        del self.state  # makes room for the next one
        self.resume(step)
        place = schedule.first_place(self.job.train, len(self.state.history) + 1)
        self.state.guard = guard.rolled_back(self.state.guard.state, schedule.first_place(self.job.train, step + 1) - place)

    def keep(self, step: int) -> None:
        """A checkpoint, where one is due and the run is healthy, or a stop was asked for; never of copies that disagree.

        Raises: StoppedError in the latter case, once it is committed.
        """
        config, stop = self.job.train, self.stops.agreed()
        due = step % config.checkpoint_every_steps == 0 or step == config.steps
        saving = (due and self.state.guard.healthy) or stop
        if self.layout.copies and (saving or step % config.guard.hash_every_steps == 0):
            check_agreement(step, self.state.model, self.layout.copies)
        if saving:
            with self.meter.phase("checkpoint"):
                self.wait(step)
                self.dog.begin("checkpoint", step)
                self.state.save(step)
        if stop and step < config.steps:
            self.wait(step)
            raise self.stops.error(step)

    def wait(self, step: int) -> None:
        """Let the checkpoint that is being written end: a slow disk isn't a hung worker."""
        self.dog.begin("write", step)
        self.state.checkpoints.wait()

    def close(self) -> None:
        """End what runs beside the steps."""
        self.beside.close()
        self.log.close()
