"""Memory of one worker at its fullest moment, by what fills it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from llm.errors import CapacityError
from llm.model import shape
from llm.model.config import ModelConfig
from llm.model.shape import Layer, Saved, Shape
from llm.plan import teachers
from llm.train.config import TrainConfig
from llm.train.objective.config import MixtureConfig
from llm.train.parallel.config import LayoutConfig

PROCESS_BYTES = {"cpu": 375_000_000, "cuda": 600_000_000}  # torch and its libraries in memory; on a GPU its context and workspaces
HEAP_SHARE = 0.2  # of the transient peak: fitted to three trainings on a CPU with glibc's malloc as it is, see infra/DECISIONS.md 28
CHUNK_LOGITS = 2**26  # of llm/train/objective/cross_entropy.py, which can't be imported without torch
OPTIMIZER_BYTES = {("adamw", 32): 8.0, ("adamw", 8): 2.1, ("adam", 32): 8.0, ("adam", 8): 2.1}  # per number; 8 bits carry a scale per block
MUON_BYTES = 4.0  # one momentum
MUON_BATCH = 2**20  # numbers that are orthogonalised together at least, llm/train/muon.py
REMEDIES = {
    "backward": "lower {section}.micro_batch_size, set {section}.activation_checkpointing to full, or raise cluster.layout.shard",
    "update": "raise cluster.layout.shard, {eight_bits}or lower model.width",
}
EIGHT_BITS = "set {section}.optimizer.state_bits to 8, "  # unless a tensor layout cuts the rows that have scales

Moment = Literal["backward", "update"]


@dataclass(frozen=True)
class Worker:
    """What one worker computes on: its chip, its share of the model, and whether others share it."""

    device: Literal["cpu", "cuda"] = "cpu"
    bf16: bool = False
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    replicas: int = 1  # copies of the model that exchange gradients
    copies_state: bool = False  # checkpoints are written from a copy in this worker's own memory
    heap_share: float = 0.0  # what the allocator holds beyond what tensors need


@dataclass(frozen=True)
class Memory:
    """Bytes by what they hold. The parts aren't all there at once: `peak_bytes` is the fuller of two moments."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int  # with averaged weights
    activations_bytes: int
    logits_bytes: int  # head: a chunk of logits, and gradients made with it
    backward_bytes: int  # what one layer's backward pass needs for itself, casts and gathered weights
    update_bytes: int  # what the optimizer needs for itself
    checkpoint_bytes: int  # the copy that checkpoints are written from
    teacher_bytes: int  # weights of a model that is only asked
    process_bytes: int
    heap_share: float  # what the allocator holds beyond that, over all but the process
    gradients_stay: bool  # several micro-batches or workers: gradients are there during the backward pass

    @property
    def moments(self) -> dict[Moment, int]:
        """Bytes at the two moments that can be the fullest: the turn from forward to backward, and the optimizer's update."""
        states = self.parameters_bytes + self.optimizer_bytes + self.checkpoint_bytes + self.teacher_bytes
        kept = self.gradients_bytes if self.gradients_stay else 0
        passing = (self.logits_bytes, self.backward_bytes)  # one after the other, but on a heap in one another's way
        turn = states + kept + self.activations_bytes + (sum(passing) if self.heap_share else max(passing))
        update = states + self.gradients_bytes + self.update_bytes
        return {"backward": self._resident(turn), "update": self._resident(update)}

    def _resident(self, tensors_bytes: int) -> int:
        return self.process_bytes + int(tensors_bytes * (1 + self.heap_share))

    @property
    def peak_moment(self) -> Moment:
        """The fuller one."""
        return max(self.moments, key=self.moments.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """Bytes at the fullest moment."""
        return self.moments[self.peak_moment]


def predict(model: ModelConfig, vocab_size: int, row_tokens: int, train: TrainConfig, worker: Worker) -> Memory:
    """Memory of one worker. Weights, gradients and optimizer state are float32 whatever the precision of matrix products.

    Source: states by degree of sharding, ZeRO, https://arxiv.org/abs/1910.02054, figure 1; sequence parallelism,
    https://arxiv.org/abs/2205.05198, section 4.2.
    """
    if isinstance(train.objective, MixtureConfig):  # a micro-batch may fall to one part whole
        alone = (train.model_copy(update={"objective": part.objective}) for part in train.objective.parts)
        return max((predict(model, vocab_size, row_tokens, part, worker) for part in alone), key=lambda memory: memory.peak_bytes)
    whole, layout, teacher = shape.of(model, vocab_size, train.objective), worker.layout, teachers.shape_of(train)
    number_bytes = 2 if worker.bf16 else 4
    mine = _share(whole, layout)
    parameters = 4 * mine.parameters // layout.shard
    states = _optimizer_bytes(mine, train) // layout.shard
    tokens = train.micro_batch_size * row_tokens // layout.context
    in_flight = min(layout.pipeline, _micro_batches(train, worker))
    activations, one_layer = _activations(mine, tokens, row_tokens, number_bytes, train, worker)
    gathered, casts = _gathered_and_casts(mine, number_bytes, worker)
    bucket = parameters if worker.replicas > 1 else 0  # DistributedDataParallel gathers gradients in buckets of its own
    return Memory(
        parameters_bytes=parameters,
        gradients_bytes=parameters,
        optimizer_bytes=states,
        activations_bytes=int(activations * in_flight),
        logits_bytes=int(_head_bytes(mine, tokens, number_bytes, train, worker) + casts + gathered + bucket),
        backward_bytes=int(one_layer + 4 * mine.head + casts + gathered + bucket),
        update_bytes=int(_update_bytes(mine, train) + bucket),
        checkpoint_bytes=parameters + states if worker.copies_state and worker.device == "cpu" else 0,
        teacher_bytes=4 * teacher.parameters if teacher else 0,
        process_bytes=PROCESS_BYTES[worker.device],
        heap_share=worker.heap_share,
        gradients_stay=_micro_batches(train, worker) > 1 or worker.replicas > 1,
    )


def check(memory: Memory, have_bytes: float, *, section: str = "train", workers: int = 1, tensor: int = 1) -> None:
    """Raises: CapacityError, with the settings that would help, if so many workers don't fit in so many bytes."""
    needed = memory.peak_bytes * workers
    if needed > have_bytes:
        eight_bits = EIGHT_BITS.format(section=section) if tensor == 1 else ""
        many = f"{workers} workers" if workers > 1 else "one worker"
        raise CapacityError(
            f"training needs more memory than there is ({many}, fullest in the {memory.peak_moment})",
            value=f"{needed / 2**30:.1f} GiB of {have_bytes / 2**30:.1f} GiB",
            remedy=REMEDIES[memory.peak_moment].format(section=section, eight_bits=eight_bits),
        )


def _micro_batches(train: TrainConfig, worker: Worker) -> int:
    rows = train.global_batch_size // max(1, worker.replicas * worker.layout.shard)
    return max(1, -(-rows // train.micro_batch_size))


def _share(whole: Shape, layout: LayoutConfig) -> Shape:
    """The part of a model on one worker of a tensor and pipeline layout: the first stage, which also embeds."""
    layers = tuple(
        replace(
            layer,
            count=-(-layer.count // layout.pipeline),
            matrices=layer.matrices // layout.tensor,
            active=layer.active // layout.tensor,
            queries=layer.queries // layout.tensor,
            heads=max(1, layer.heads // layout.tensor),
            scores=layer.scores / layout.tensor,
            ffn=layer.ffn // layout.tensor,
        )
        for layer in whole.layers
    )
    blocks = sum(layer.count * layer.parameters for layer in layers)
    around = (whole.parameters - whole.blocks) // layout.tensor
    head = whole.head // layout.tensor
    return replace(whole, layers=layers, head=head, parameters=blocks + around)


def _gathered_and_casts(mine: Shape, number_bytes: int, worker: Worker) -> tuple[int, int]:
    """A layer's weights with their gradient, gathered from other shards, and copies of weights in bfloat16.

    Experts that are spread out stay where they are: nothing of them is gathered, and copies are made of a worker's own.
    """
    layout = worker.layout
    if layout.shard == 1:
        return 0, 2 * (mine.matrices + mine.head) if worker.bf16 else 0
    spread = layout.expert > 1
    gathered = 2 * number_bytes * max(layer.parameters - spread * layer.experts for layer in mine.layers)
    return gathered, 2 * mine.experts // layout.expert if worker.bf16 and spread else 0


def _optimizer_bytes(mine: Shape, train: TrainConfig) -> int:
    config = train.optimizer
    adam = OPTIMIZER_BYTES["adamw" if config.kind == "muon" else config.kind, config.state_bits]
    muon = mine.matrices if config.kind == "muon" else 0
    average = 4 * mine.parameters if train.average_decay else 0
    return int(muon * MUON_BYTES + (mine.parameters - muon) * adam) + average


def _activations(mine: Shape, tokens: int, row_tokens: int, number_bytes: int, train: TrainConfig, worker: Worker) -> tuple[float, float]:
    """What is kept from the forward pass, and what the fullest layer's backward pass adds to it.

    On a worker of a tensor-parallel group every number per token is a share: matrices are split by heads and inner
    width, the rest by position.
    """
    divisor = worker.layout.tensor
    kept, largest = 0.0, 0.0
    for layer in mine.layers:
        passed = tokens * layer.passed
        scores = 4 * passed * row_tokens * layer.scores if worker.device == "cpu" else 0.0
        everything = passed * _on_device(layer, mine.width, worker).bytes(number_bytes) / divisor + scores * layer.score_copies
        if train.document_mask:
            everything += passed * row_tokens * number_bytes  # the mask as numbers that are added to the scores
        inputs = 4 * passed * mine.width / divisor
        products = inputs + passed * (number_bytes * layer.products + 4 * layer.heads) / divisor + scores
        each = {"none": everything, "selective": products, "full": inputs}[train.activation_checkpointing]
        kept += layer.count * each
        again = everything if train.activation_checkpointing != "none" else 0.0
        largest = max(largest, again + _gradients_of_one_layer(layer, mine.width, passed, scores, number_bytes))
    read = max(layer.passed for layer in mine.layers) * tokens
    last_norm = read * (Saved(fp32=2 * mine.width + 1, casts=mine.width, uncast=mine.width).bytes(number_bytes) + 16)
    return kept + last_norm / divisor, largest


def _gradients_of_one_layer(layer: Layer, width: int, tokens: float, scores: float, number_bytes: int) -> float:
    """Gradients of the feed-forward net's inner numbers, two while a third is read, or of scores as many; and of the residual stream."""
    return max(tokens * 2 * number_bytes * layer.ffn, 2 * scores) + tokens * 8 * width


def _on_device(layer: Layer, width: int, worker: Worker) -> Saved:
    """On a GPU RMSNorm is one kernel, which doesn't keep the normalised numbers before they are scaled; attention always is."""
    if worker.device == "cpu":
        return layer.saved
    norms = Saved(fp32=-2 * width) if layer.saved.fp32 >= 4 * width else Saved()
    fused = Saved(fp32=layer.heads - layer.unfused, compute=layer.unfused) if layer.unfused else Saved()
    return layer.saved + norms + fused


def _head_bytes(mine: Shape, tokens: int, number_bytes: int, train: TrainConfig, worker: Worker) -> float:
    """Gradients of features and matrix, one product on its way into the latter, and a chunk of logits; one more set with z-loss."""
    terms = 2 if train.z_loss_weight else 1
    chunk = min(tokens * mine.told * mine.vocab_size, CHUNK_LOGITS)
    logits = chunk * (number_bytes + (4 if worker.device == "cuda" else 0))
    return terms * 4 * (tokens * mine.width + mine.head) + number_bytes * mine.head + logits


def _update_bytes(mine: Shape, train: TrainConfig) -> float:
    """Muon's orthogonalisation of a batch of matrices, whole ones, in bfloat16; Adam in 8 bits unpacks the largest matrix."""
    largest = max(layer.matrices // 3 for layer in mine.layers)
    muon = 12 * max(largest, MUON_BATCH) if train.optimizer.kind == "muon" else 0
    return muon + (12 * mine.head if train.optimizer.state_bits == 8 else 0)
