"""The one training loop: pretraining and fine-tuning differ in rows and initial weights, never here.

    job = TrainJob(rows=..., model=..., train=..., seed=1, work=Path("work"))
    train(job)                                  # alone, or in every process of an initialised process group

Killed at any moment and called again, it continues from the newest checkpoint in `work`, and ends with the
same weights and history as if nothing had happened.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llm import artifact, metrics
from llm.data.rows import Rows, order
from llm.errors import ArtifactError, DataError, DivergenceError, RecipeError
from llm.model import weights
from llm.model.config import ModelConfig
from llm.model.decoder import Decoder
from llm.train import optimizer, precision, schedule
from llm.train.batch import Batch
from llm.train.checkpoint import HISTORY, Checkpoints, sole_writer, write_history
from llm.train.config import TrainConfig
from llm.train.learner import Learner
from llm.train.objective import kinds
from llm.train.parallel.replica import Replica
from llm.train.parallel.world import World


@dataclass(frozen=True)
class TrainJob:
    """What decides a trained model, and the folder that survives between attempts at it."""

    rows: Path  # a tokenize or chat artifact
    model: ModelConfig
    train: TrainConfig
    seed: int
    work: Path  # checkpoints/, metrics.jsonl, and in the end final/
    initial: Path | None = None  # a pretrain artifact to continue from; None starts from random weights
    device: str = "auto"  # auto, cpu or cuda

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the weights; a checkpoint of another fingerprint is refused."""
        return artifact.sha256_of(
            {
                "model": self.model.model_dump(mode="json"),
                "train": self.train.model_dump(mode="json"),
                "seed": self.seed,
                "rows": {path.name: artifact.sha256_file(path) for path in (self.rows / "rows.json", *self.rows.glob("train.*"))},
                "initial": artifact.sha256_file(self.initial / "model.safetensors") if self.initial else None,
            }
        )


def train(job: TrainJob) -> None:
    """Train to the last step and leave the model in `job.work/final`.

    Raises: DivergenceError if loss or gradient leaves the finite numbers (that step is not applied), RecipeError
    if the sizes don't fit together, DataError if there is nothing to learn from, ArtifactError if `work` can't be used.
    """
    world = World.current(job.device)
    with artifact.named_errors(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
        with sole_writer(job.work, world):
            Attempt(job, world).run()


class Attempt:
    """One attempt at a job: from its newest checkpoint to its end."""

    def __init__(self, job: TrainJob, world: World) -> None:
        self.job, self.world, self.began = job, world, time.monotonic()
        self.rows, self.validation = Rows.open(job.rows, "train"), Rows.open(job.rows, "validation")
        check_sizes(job, self.rows, world)
        self.objective = kinds.build(job.train, self.rows.vocab_size)
        self.dtype = precision.resolve(job.train.precision, world.device)
        self.model = initial_model(job, self.rows.vocab_size + self.objective.extra_ids).to(world.device).train()
        self.learner = Learner(self.model, self.objective, self.dtype, job.train.z_loss_weight)
        self.replica = Replica(self.learner, world)
        self.optimizers = optimizer.build(self.model, job.train.optimizer)
        fingerprint = world.first(lambda: job.fingerprint)  # reads every training row, so once for all workers
        self.checkpoints = Checkpoints(job.work / "checkpoints", fingerprint, job.seed, job.train.keep_checkpoints, world)
        progress = self.checkpoints.restore(self.model, self.optimizers) or {"history": []}
        self.history: list[dict[str, Any]] = progress["history"]
        self.replica.rehearse(self.objective.batch(self.rows, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), job.seed))

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
            if step % config.checkpoint_every_steps == 0 or step == config.steps:
                self.checkpoints.save(step, self.model, self.optimizers, {"history": self.history})
        self.finish()

    def update(self, step: int) -> dict[str, Any]:
        """One optimizer update: batch, gradient, clipping, learning rate, step.

        Raises: DivergenceError before anything is applied, on every worker alike.
        """
        config, share = self.job.train, schedule.share(self.job.train, step)
        torch.manual_seed(int(np.random.SeedSequence((self.job.seed, step, self.world.rank)).generate_state(1, np.uint64)[0]))
        first, count = (step - 1) * config.global_batch_size, config.global_batch_size
        indices = order(first, count, rows=len(self.rows), seed=self.job.seed)
        losses, targets = self.gradient(self.batches(self.rows, indices, np.arange(first, first + count)))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm).item()
        check_finite(step, losses["loss"], norm)
        optimizer.set_learning_rates(self.optimizers, share)
        for each in self.optimizers:
            each.step()
        self.model.zero_grad()
        seen = self.history[-1]["tokens"] if self.history else 0
        rate = share * optimizer.peak_learning_rate(config.optimizer)
        return losses | {"step": step, "learning_rate": rate, "grad_norm": norm, "tokens": seen + targets}

    def batches(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64]) -> list[Batch]:
        """This worker's micro-batches of rows that stand at `places` of the sample stream."""
        own, size = self.world.part(np.arange(len(indices))), self.job.train.micro_batch_size
        parts = [own[first : first + size] for first in range(0, len(own), size)]
        return [self.objective.batch(rows, indices[part], places[part], self.job.seed) for part in parts]

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
        places = np.arange(min(self.job.train.validation_rows, len(self.validation)))
        batches = self.batches(self.validation, places, places)
        counts = self.totals([self.learner.counts(batch) for batch in batches])
        sums = self.totals(self.replica.evaluate(batches))
        return {"validation_loss": sums["loss"] / counts["loss"]} if counts["loss"] else {}

    def report(self, record: dict[str, Any], *, seconds: float) -> None:
        """Append the step to `metrics.jsonl`, with the clock that must not enter the history."""
        if self.world.rank == 0:
            tokens_per_second = self.job.train.global_batch_size * self.rows.row_tokens / seconds
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


def initial_model(job: TrainJob, vocab_size: int) -> Decoder:
    """Random weights from the seed, or those of `job.initial`.

    Raises: ArtifactError if the initial weights have other sizes than the job.
    """
    if job.initial is None:
        torch.manual_seed(job.seed)
        return Decoder(job.model, vocab_size)
    model = weights.load(job.initial)
    if (model.config, model.vocab_size) != (job.model, vocab_size):
        raise ArtifactError(
            "initial weights have other sizes than the job",
            value=job.initial,
            remedy="train from a model of this `model` section and tokenizer",
        )
    return model


def check_sizes(job: TrainJob, rows: Rows, world: World) -> None:
    """Raises: RecipeError if batch or rows don't fit workers or model, DataError if there is no row."""
    if len(rows) == 0:
        raise DataError("no training row", value=job.rows, remedy="collect more text, or set tokenize.row_tokens lower")
    if rows.row_tokens > job.model.max_positions:
        raise RecipeError("rows are longer than the model handles", value=rows.row_tokens, remedy="set model.max_positions to it")
    if job.train.global_batch_size < world.size:
        raise RecipeError(
            "batch has fewer rows than workers",
            value=job.train.global_batch_size,
            remedy=f"set train.global_batch_size to {world.size} or more",
        )


def check_finite(step: int, loss: float, norm: float) -> None:
    """Raises: DivergenceError if a number is infinite or NaN."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergenceError(
            f"training diverged at step {step}",
            value=f"loss {loss}, gradient norm {norm}",
            remedy="set train.optimizer.muon_learning_rate and adamw_learning_rate lower, or train.schedule.warmup_steps higher",
        )
