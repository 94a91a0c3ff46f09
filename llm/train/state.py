"""All that a training goes on from: built from a job, saved to a checkpoint and read from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from llm.data.rows import Rows
from llm.train import float8, optimizer, precision
from llm.train.average import Average
from llm.train.checkpoint import Checkpoints
from llm.train.config import TrainConfig
from llm.train.guard import Guard
from llm.train.job import TrainJob, initial_model
from llm.train.learner import Learner
from llm.train.objective import kinds
from llm.train.parallel.layout import Layout
from llm.train.parallel.replica import Replica
from llm.train.precision import LossScale
from llm.train.retention import Retention


class State:
    """Model, optimizers and everything else that a step changes, as the newest checkpoint left it."""

    def __init__(self, job: TrainJob, layout: Layout) -> None:
        config, world = job.train, layout.world
        rows = Rows.open(job.rows, "train")
        self.objective = kinds.build(config, job.model.architecture, rows.vocab_size, rows.row_tokens)
        self.dtype = precision.resolve(config.precision, world.device)
        self.model = prepared(initial_model(job, rows.vocab_size + self.objective.extra_ids), config, self.dtype).train()
        self.learner = Learner(self.model, self.objective, self.dtype, config.z_loss_weight)
        self.replica = Replica(self.learner, layout)
        self.optimizers = optimizer.build(self.model, config.optimizer)
        self.average = Average(self.model, config.average_decay) if config.average_decay else None
        fingerprint = world.first(lambda: job.fingerprint)  # may read every training row, so once for all workers
        self.checkpoints = Checkpoints(
            job.work / "checkpoints",
            fingerprint,
            job.seed,
            Retention.of(config),
            world,
            background=job.cluster.async_checkpoints,
            patience_seconds=job.cluster.storage_patience_seconds,
        )
        self.config = config
        self.continue_from(self.checkpoints.restore(self.model, self.optimizers, self.tensors()) or {})

    def continue_from(self, progress: Mapping[str, Any]) -> None:
        """What a checkpoint holds besides tensors; nothing, at a fresh start."""
        self.history: list[dict[str, Any]] = progress.get("history", [])
        self.guard = Guard(self.config.guard, progress.get("guard"))
        self.loss_scale = LossScale(**progress["loss_scale"]) if "loss_scale" in progress else first_scale(self.dtype)

    def return_to_best(self) -> None:
        """Be again what the checkpoint with the best validation loss holds, history included; without any, stay as it is.

        Raises: ArtifactError if that checkpoint is damaged.
        """
        progress = self.checkpoints.restore(self.model, self.optimizers, self.tensors(), best_of=self.history)
        if progress is not None:
            self.continue_from(progress)

    def save(self, step: int) -> None:
        """Begin a checkpoint of the state after `step`."""
        progress = {"history": self.history, "guard": self.guard.state, "loss_scale": asdict(self.loss_scale)}
        self.checkpoints.save(step, self.model, self.optimizers, progress, self.tensors(), healthy=self.guard.healthy)

    def tensors(self) -> Mapping[str, Tensor] | None:
        """The averaged weights by name, where there are any."""
        return self.average.tensors if self.average else None

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that the training is judged by."""
        return self.average.applied() if self.average else nullcontext()

    def parameters(self) -> Iterator[nn.Parameter]:
        """What of the model this worker holds."""
        return self.model.parameters()


def first_scale(dtype: torch.dtype) -> LossScale:
    """Only float16 needs one above 1."""
    return LossScale() if dtype == torch.float16 else LossScale(1.0)


def prepared(model: Any, config: TrainConfig, dtype: torch.dtype) -> Any:
    """The model with what the recipe says about how it computes; names of parameters stay."""
    for block in model.blocks:
        block.checkpointing = config.activation_checkpointing
    if dtype == torch.float8_e4m3fn:
        float8.convert(model)
    if config.compile:
        for block in model.blocks:
            block.compile()
    return model
