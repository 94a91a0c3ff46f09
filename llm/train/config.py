"""The `train` and `cluster` sections of a recipe: how a model learns, and on what machines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm.config import Section
from llm.data.config import CorpusMixtureConfig
from llm.train.objective.config import NextTokenConfig, ObjectiveConfig
from llm.train.parallel.config import LayoutConfig


class OptimizerConfig(Section):
    """`muon` moves the matrices inside the blocks and leaves the rest to AdamW; `adamw` and `adam` move everything.

    Source: Muon, https://kellerjordan.github.io/posts/muon/; AdamW, https://arxiv.org/abs/1711.05101.
    """

    kind: Literal["muon", "adamw", "adam"] = "muon"
    muon_learning_rate: float = Field(default=0.02, gt=0, description="peak for matrices inside the blocks; unused by adamw and adam")
    adamw_learning_rate: float = Field(default=6e-4, gt=0, description="peak for embeddings, norms and head; else for everything")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of Muon, in Nesterov's form")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="of AdamW and Adam")
    epsilon: float = Field(default=1e-8, gt=0, description="of AdamW and Adam")
    weight_decay: float = Field(default=0.1, ge=0, description="of matrices; norms and other vectors never decay")
    state_bits: Literal[32, 8] = Field(default=32, description="8 keeps AdamW's moments block-wise in one byte each")
    layer_decay: float = Field(default=1.0, gt=0, le=1, description="learning rate of a layer over that of the layer above it")

    @model_validator(mode="after")
    def _betas_are_shares(self) -> OptimizerConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} leave [0, 1); set train.optimizer.betas to values such as [0.9, 0.95]")
        return self


class ScheduleConfig(Section):
    """Linear warm-up to the peak, then `kind` down to `floor_share` of it.

    `cosine`, `linear`, `inverse_sqrt`, `step` (times `step_factor` every `step_steps`), `cyclical` (triangles of
    `cycle_steps`), `wsd` (the peak, then a fall over the last `decay_steps`), `constant`.
    """

    kind: Literal["cosine", "linear", "inverse_sqrt", "step", "cyclical", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(default=100, ge=0)
    floor_share: float = Field(default=0.1, ge=0, le=1)
    step_steps: int = Field(default=1000, ge=1)
    step_factor: float = Field(default=0.5, gt=0, lt=1)
    cycle_steps: int = Field(default=1000, ge=2)
    decay_steps: int | None = Field(default=None, ge=1, description="of wsd; None: a fifth of all steps")
    decay: Literal["linear", "1-sqrt"] = Field(default="linear", description="shape of wsd's fall; 1-sqrt is steeper at first")


class RampConfig(Section):
    """A global batch that grows from `rows` to global_batch_size over the first `steps`, by `rows` at a time."""

    rows: int = Field(ge=1, description="of the first batch; a divisor of global_batch_size")
    steps: int = Field(ge=1)


class GuardConfig(Section):
    """What is an unhealthy step, and how much of that a training survives.

    A step whose loss or gradient isn't finite, or whose loss or gradient norm stands more than `spike_deviations` robust
    deviations above those of the last `window_steps`, is not applied.
    """

    window_steps: int = Field(default=64, ge=8)
    spike_deviations: float = Field(default=20.0, gt=1)
    patience_steps: int = Field(default=3, ge=1, description="unhealthy steps in a row before the run goes back to a checkpoint")
    max_rollbacks: int = Field(default=3, ge=0, description="returns to a checkpoint before the run stops")
    plateau_steps: int | None = Field(default=None, ge=1, description="steps without a better smoothed loss before an alert")
    hash_every_steps: int = Field(default=100, ge=1, description="how often workers compare their copies of the parameters")


class TrainConfig(Section):
    """What decides the trained weights, apart from model, rows and seed."""

    steps: int = Field(ge=0, description="optimizer updates; 0 hands the weights of `initial` on as they are")
    global_batch_size: int = Field(ge=1, description="rows per step, over all workers")
    micro_batch_size: int = Field(ge=1, description="rows per forward pass of a worker; grad_accumulation follows from it")
    ramp: RampConfig | None = Field(default=None, description="smaller batches at first")
    initial: str | None = Field(default=None, description="folder of a model to continue from: ours, or one in Hugging Face format")
    objective: ObjectiveConfig = NextTokenConfig()
    mixture: CorpusMixtureConfig | None = Field(default=None, description="how often which rows are read; none: all equally often")
    document_mask: bool = Field(default=False, description="attention never crosses the border between two documents of a row")
    z_loss_weight: float = Field(default=0.0, ge=0, description="of the squared log-sum of the logits; 1e-4 in PaLM")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: float = Field(default=1.0, gt=0, description="largest norm of the whole gradient")
    average_decay: float | None = Field(default=None, gt=0, lt=1, description="of an exponential average of the weights: the result")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = Field(default="auto", description="of matrix products; weights stay fp32")
    activation_checkpointing: Literal["none", "selective", "full"] = Field(default="none", description="what backward computes again")
    compile: bool = Field(default=False, description="compile the blocks with torch.compile")
    guard: GuardConfig = GuardConfig()
    validate_every_steps: int = Field(default=200, ge=1)
    validation_rows: int = Field(default=256, ge=0, description="rows of the validation split per pass; 0 never validates")
    stop_after_validations: int | None = Field(
        default=None, ge=1, description="so many without a better loss end it; the result is the best one's"
    )
    checkpoint_every_steps: int = Field(default=200, ge=1)
    keep_checkpoints: int = Field(
        default=2, ge=2, description="never below 2: they are verified when read, and a damaged one leaves the one before"
    )
    keep_every_steps: int | None = Field(default=None, ge=1, description="checkpoints at multiples of it stay while it trains")
    keep_best: bool = Field(default=False, description="that with the best validation loss stays while it trains")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.steps == 0:
            self._hands_on()
        elif self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"{self.schedule.warmup_steps} warm-up steps leave no decay in {self.steps} steps; "
                "set train.schedule.warmup_steps below train.steps"
            )
        if self.micro_batch_size > self.global_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} exceeds global_batch_size {self.global_batch_size}; "
                "set train.micro_batch_size lower"
            )
        if self.steps and self.schedule.kind == "wsd" and (self.schedule.decay_steps or 0) > self.steps - self.schedule.warmup_steps:
            raise ValueError(
                f"decay of {self.schedule.decay_steps} steps does not fit between warm-up and step {self.steps}; "
                f"set train.schedule.decay_steps to {self.steps - self.schedule.warmup_steps} or less"
            )
        if self.ramp and self.global_batch_size % self.ramp.rows:
            raise ValueError(
                f"ramp of {self.ramp.rows} rows does not divide global_batch_size {self.global_batch_size}; "
                "set train.ramp.rows to a divisor of it"
            )
        return self

    @model_validator(mode="after")
    def _best_has_a_checkpoint(self) -> TrainConfig:
        if not (self.stop_after_validations or self.keep_best):
            return self
        if not self.validation_rows:
            raise ValueError("stopping early and keeping the best need a validation loss; set train.validation_rows above 0")
        if self.validate_every_steps % self.checkpoint_every_steps:
            raise ValueError(
                f"what is validated every {self.validate_every_steps} steps and best may have no checkpoint, with one every "
                f"{self.checkpoint_every_steps}; set train.checkpoint_every_steps to a divisor of {self.validate_every_steps}"
            )
        return self

    def _hands_on(self) -> None:
        if not self.initial:
            raise ValueError("0 steps train nothing; set train.steps above 0, or train.initial to weights that need no training")
        if self.mixture:
            raise ValueError("0 steps read nothing that could be mixed; unset train.mixture")


class BudgetConfig(Section):
    """Where a training stops with a checkpoint; the same command with a larger budget goes on from there."""

    hours: float | None = Field(default=None, gt=0)
    usd: float | None = Field(default=None, gt=0)
    kwh: float | None = Field(default=None, gt=0)


class PriceConfig(Section):
    """What machines cost, for plans and budgets."""

    gpu_hour_usd: float = Field(default=2.5, ge=0)
    cpu_hour_usd: float = Field(default=0.04, ge=0, description="of one core")
    kg_co2e_per_kwh: float = Field(default=0.4, ge=0, description="of the grid; 0.4 is near the world's mean")
    pue: float = Field(default=1.2, ge=1, description="energy of the whole building over that of the machines")


class ClusterConfig(Section):
    """Which machines train. Recorded with the result, not part of its key: the sample stream is the same on any number of workers."""

    workers: int = Field(default=1, ge=1, description="training processes")
    min_workers: int | None = Field(default=None, ge=1, description="go on with so many when machines are lost; None: wait for all")
    layout: LayoutConfig = LayoutConfig()
    in_process: bool = Field(default=False, description="train in this process, without Ray; for one worker only")
    use_gpu: Literal["auto"] | bool = Field(default="auto", description="auto: one GPU per worker where the cluster has that many")
    cpus_per_worker: int = Field(default=1, ge=1, description="cores that Ray reserves for a worker")
    threads_per_worker: int = Field(default=1, ge=1, description="threads that torch uses in a worker")
    dashboard: bool = Field(default=False, description="of a Ray that is started for this run")
    start_timeout_seconds: int = Field(default=120, ge=1, description="longest wait for a worker group")
    collective_timeout_seconds: int = Field(default=600, ge=1, description="longest wait of a worker for the others")
    step_timeout_seconds: float = Field(default=45.0, gt=0, description="longest step, or ten usual ones, of a worker that isn't hung")
    write_timeout_seconds: float = Field(default=1800, gt=0, description="longest load, save or result before a worker counts as hung")
    storage_patience_seconds: float = Field(default=300, ge=0, description="longest wait for storage that is away, before training fails")
    max_recoveries: int = Field(default=3, ge=0, description="lost workers that a training survives")
    poll_seconds: float = Field(default=0.5, gt=0, description="how often Ray looks after its workers")
    async_checkpoints: bool = Field(default=True, description="write checkpoints while the next steps run")
    profile_steps: tuple[int, int] | None = Field(default=None, description="first and last step of a profiler trace, in the result's log/")
    budget: BudgetConfig = BudgetConfig()
    price: PriceConfig = PriceConfig()

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """Where a worker computes, in the words of TrainJob."""
        if self.use_gpu == "auto":
            return "auto"
        return "cuda" if self.use_gpu else "cpu"

    @model_validator(mode="after")
    def _steps_have_an_order(self) -> ClusterConfig:
        if self.profile_steps and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            first, last = self.profile_steps
            raise ValueError(f"no step lies from {first} to {last}; set cluster.profile_steps to a first and a last step, counted from 1")
        return self

    @model_validator(mode="after")
    def _one_worker_in_process(self) -> ClusterConfig:
        if self.in_process and self.workers > 1:
            raise ValueError(f"{self.workers} workers don't fit in one process; set cluster.in_process to false")
        return self

    @model_validator(mode="after")
    def _layout_divides(self) -> ClusterConfig:
        layout = self.layout
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} exceeds workers {self.workers}; set cluster.min_workers lower")
        if self.workers % layout.model_workers:
            raise ValueError(
                f"{layout.model_workers} workers for one copy of the model do not divide {self.workers} workers; "
                f"set cluster.workers to a multiple of {layout.model_workers}"
            )
        if self.min_workers is not None and layout.replicate is not None:
            raise ValueError("a group that may shrink has no fixed number of copies; unset cluster.layout.replicate or cluster.min_workers")
        copies = self.workers // layout.model_workers
        if layout.replicate not in (None, copies):
            raise ValueError(f"{self.workers} workers hold {copies} copies of the model; set cluster.layout.replicate to {copies}")
        if layout.shard % layout.expert:
            raise ValueError(f"expert {layout.expert} does not divide shard {layout.shard}; set cluster.layout.expert to a divisor")
        return self
