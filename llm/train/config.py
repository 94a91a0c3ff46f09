"""The `train` and `cluster` sections of a recipe: how a model learns, and on what machines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm.config import Section


class OptimizerConfig(Section):
    """`muon` moves the matrices inside the blocks and leaves the rest to AdamW; `adamw` moves everything with AdamW.

    Source: Muon, https://kellerjordan.github.io/posts/muon/; AdamW, https://arxiv.org/abs/1711.05101.
    """

    kind: Literal["muon", "adamw"] = "muon"
    muon_learning_rate: float = Field(default=0.02, gt=0, description="peak for matrices inside the blocks; unused by adamw")
    adamw_learning_rate: float = Field(default=6e-4, gt=0, description="peak for embeddings, norms and head; with adamw for everything")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of Muon, in Nesterov's form")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="of AdamW")
    weight_decay: float = Field(default=0.1, ge=0, description="of matrices; norms and other vectors never decay")

    @model_validator(mode="after")
    def _betas_are_shares(self) -> OptimizerConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} leave [0, 1); set train.optimizer.betas to values such as [0.9, 0.95]")
        return self


class ScheduleConfig(Section):
    """Linear warm-up, then half a cosine down to `floor_share` of the peak."""

    warmup_steps: int = Field(default=100, ge=0)
    floor_share: float = Field(default=0.1, ge=0, le=1)


class TrainConfig(Section):
    """What decides the trained weights, apart from model, rows and seed."""

    steps: int = Field(ge=1, description="optimizer updates")
    global_batch_size: int = Field(ge=1, description="rows per step, over all workers")
    micro_batch_size: int = Field(ge=1, description="rows per forward pass of a worker; grad_accumulation follows from it")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: float = Field(default=1.0, gt=0, description="largest norm of the whole gradient")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="of matrix products; weights stay fp32")
    validate_every_steps: int = Field(default=200, ge=1)
    validation_rows: int = Field(default=256, ge=0, description="rows of the validation split per pass; 0 never validates")
    checkpoint_every_steps: int = Field(default=200, ge=1)
    keep_checkpoints: int = Field(default=2, ge=2, description="never below 2: one is kept until the next has verified")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"{self.schedule.warmup_steps} warm-up steps leave no decay in {self.steps} steps; "
                "set train.schedule.warmup_steps below train.steps"
            )
        if self.micro_batch_size > self.global_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} exceeds global_batch_size {self.global_batch_size}; "
                "set train.micro_batch_size lower"
            )
        return self


class ClusterConfig(Section):
    """Which machines train. Recorded with the result, not part of its key: the sample stream is the same on any number of workers."""

    workers: int = Field(default=1, ge=1, description="training processes")
    in_process: bool = Field(default=False, description="train in this process, without Ray; for one worker only")
    use_gpu: Literal["auto"] | bool = Field(default="auto", description="auto: one GPU per worker where the cluster has that many")
    cpus_per_worker: int = Field(default=1, ge=1, description="cores that Ray reserves for a worker")
    threads_per_worker: int = Field(default=1, ge=1, description="threads that torch uses in a worker")
    dashboard: bool = Field(default=False, description="of a Ray that is started for this run")
    start_timeout_seconds: int = Field(default=120, ge=1, description="longest wait for a worker group")
    collective_timeout_seconds: int = Field(default=600, ge=1, description="longest wait of a worker for the others")
    max_recoveries: int = Field(default=3, ge=0, description="lost workers that a training survives")
    poll_seconds: float = Field(default=0.5, gt=0, description="how often Ray looks after its workers")

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """Where a worker computes, in the words of TrainJob."""
        if self.use_gpu == "auto":
            return "auto"
        return "cuda" if self.use_gpu else "cpu"

    @model_validator(mode="after")
    def _one_worker_in_process(self) -> ClusterConfig:
        if self.in_process and self.workers > 1:
            raise ValueError(f"{self.workers} workers don't fit in one process; set cluster.in_process to false")
        return self
