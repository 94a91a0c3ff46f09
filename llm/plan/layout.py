"""Which layout of a cluster trains a model fastest, and why not another one.

Every layout that divides is predicted: its memory (llm/plan/memory.py) and the time of a step, as arithmetic, exchange
that arithmetic can't hide, and the bubble of a pipeline. Of those that fit and are nearly the fastest, the simplest wins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llm.errors import CapacityError, RecipeError
from llm.model import shape
from llm.model.config import ModelConfig
from llm.model.shape import Shape
from llm.plan import memory, teachers
from llm.plan.cost import EXPECTED_MFU, RECOMPUTED
from llm.plan.memory import Memory, Worker
from llm.train.config import TrainConfig
from llm.train.devices import Device
from llm.train.parallel import check as parallel
from llm.train.parallel.config import LayoutConfig

Checkpointing = Literal["none", "selective", "full"]
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full")
Interconnect = Literal["infiniband", "ethernet"]
BETWEEN_MACHINES = {"infiniband": 50e9, "ethernet": 12.5e9}  # bytes per second and GPU, one way: 400 and 100 Gbit/s
BUS_SHARE = 0.8  # of a link's rate that large collectives reach
MEMORY_SHARE = 0.92  # of a GPU's memory that tensors can fill: the rest is the allocator's fragments and the libraries
HIDDEN_SHARE = 0.8  # of gradients' and weights' exchange that runs beside arithmetic, at best
TENSOR_SLOWDOWN = 0.05  # of arithmetic per doubling: thinner matrices are multiplied less efficiently
WORTH_ANOTHER_KIND = 0.05  # of speed: what a further kind of parallelism must gain to be worth what can break
SHORTEST_PART_TOKENS = 2048  # of a row that context parallelism cuts
MICRO_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
KINDS = ("replicate", "shard", "tensor", "pipeline", "context", "expert")


@dataclass(frozen=True)
class Cluster:
    """The GPUs to lay out."""

    gpus: int
    gpus_per_node: int
    memory_gib: float
    chip: Device
    interconnect: Interconnect = "infiniband"

    @property
    def usable_bytes(self) -> float:
        """Of a GPU's memory."""
        return self.memory_gib * 2**30 * MEMORY_SHARE

    def bandwidth(self, group: int) -> float:
        """Bytes per second and GPU within a group of neighbouring GPUs: its slowest link decides."""
        link = self.chip.link_bandwidth if group <= self.gpus_per_node else BETWEEN_MACHINES[self.interconnect]
        return BUS_SHARE * min(link, self.chip.link_bandwidth)


@dataclass(frozen=True)
class Candidate:
    """A layout with what it would need and take."""

    layout: LayoutConfig
    replicate: int
    micro_batch_size: int
    checkpointing: Checkpointing
    memory: Memory
    compute_seconds: float  # of a step
    exchange_seconds: float
    bubble_seconds: float

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute_seconds + self.exchange_seconds + self.bubble_seconds

    @property
    def name(self) -> str:
        """Its degrees above one, as `shard 8 × tensor 8`."""
        degrees = {"replicate": self.replicate} | {kind: getattr(self.layout, kind) for kind in KINDS[1:]}
        return " × ".join(f"{kind} {degree}" for kind, degree in degrees.items() if degree > 1) or "one GPU"

    @property
    def kinds(self) -> frozenset[str]:
        """Which kinds of parallelism it uses."""
        return frozenset(kind for kind in KINDS if (self.replicate if kind == "replicate" else getattr(self.layout, kind)) > 1)


@dataclass(frozen=True)
class Choice:
    """The layout to take, and a line for each kind that was not."""

    best: Candidate
    why: tuple[str, ...]


def choose(model: ModelConfig, vocab_size: int, row_tokens: int, train: TrainConfig, cluster: Cluster) -> Choice:
    """The fastest layout that fits.

    Raises: CapacityError if none fits, RecipeError if none divides.
    """
    candidates = list(_candidates(model, vocab_size, row_tokens, train, cluster))
    if not candidates:
        raise RecipeError(
            "no layout divides the batch over these GPUs",
            value=f"{train.global_batch_size} rows on {cluster.gpus} GPUs",
            remedy="set train.global_batch_size to a multiple of the GPUs",
        )
    have = cluster.usable_bytes
    fitting = [candidate for candidate in candidates if candidate.memory.peak_bytes <= have]
    if not fitting:
        least = min(candidates, key=lambda candidate: candidate.memory.peak_bytes)
        raise CapacityError(
            f"no layout fits {cluster.gpus} GPUs of {cluster.memory_gib:.0f} GiB; {least.name} needs least",
            value=f"{least.memory.peak_bytes / 2**30:.1f} GiB each",
            remedy="use more or larger GPUs, or lower model.width or tokenize.row_tokens",
        )
    fastest = min(candidate.seconds for candidate in fitting)
    close = [candidate for candidate in fitting if candidate.seconds <= fastest * (1 + WORTH_ANOTHER_KIND)]
    best = min(close, key=lambda candidate: (len(candidate.kinds), candidate.seconds))
    return Choice(best, tuple(_reasons(best, candidates, have)))


def _candidates(model: ModelConfig, vocab_size: int, row_tokens: int, train: TrainConfig, cluster: Cluster) -> Iterator[Candidate]:
    """Every layout that the engine trains, each with the micro-batch and checkpointing that suit it best.

    Matrices are split inside a machine only, stages have as many layers each, and parts of a row stay long. Experts are
    spread over all workers or none.
    """
    whole = shape.of(model, vocab_size, train.objective)
    powers = [2**power for power in range(13) if 2**power <= cluster.gpus]
    for tensor, pipeline, context in itertools.product(powers, powers, powers):
        inner = tensor * pipeline * context
        short = context > 1 and row_tokens // context < SHORTEST_PART_TOKENS
        if cluster.gpus % inner or tensor > cluster.gpus_per_node or whole.layers[0].count % pipeline or short:
            continue
        data = cluster.gpus // inner
        for shard in {1, data, *(degree for degree in powers if data % degree == 0 and degree * inner == cluster.gpus_per_node)}:
            layout = LayoutConfig(shard=shard, tensor=tensor, pipeline=pipeline, context=context)
            yield from _fastest(whole, model, row_tokens, train, cluster, layout)
        if whole.experts and data > 1:
            spread = LayoutConfig(shard=data, tensor=tensor, pipeline=pipeline, context=context, expert=data)
            yield from _fastest(whole, model, row_tokens, train, cluster, spread)


def _fastest(
    whole: Shape, model: ModelConfig, row_tokens: int, train: TrainConfig, cluster: Cluster, layout: LayoutConfig
) -> Iterator[Candidate]:
    """The layout with the fastest micro-batch and checkpointing that fit, or else those that need least memory."""
    replicate, found = cluster.gpus // layout.model_workers, []
    rows, uneven = divmod(math.gcd(train.global_batch_size, train.ramp.rows if train.ramp else 0), replicate * layout.shard)
    sizes = [size for size in MICRO_BATCH_SIZES if rows % size == 0 and not uneven]
    for size, checkpointing in itertools.product(sizes, CHECKPOINTING):
        changed = train.model_copy(update={"micro_batch_size": size, "activation_checkpointing": checkpointing})
        if not _trains(layout, model, changed, row_tokens, cluster.gpus):
            continue
        worker = Worker("cuda", train.precision != "fp32", layout, replicate)
        needed = memory.predict(model, whole.vocab_size, row_tokens, changed, worker)
        times = step_seconds(whole, row_tokens, changed, cluster, layout, replicate)
        found.append(Candidate(layout, replicate, size, checkpointing, needed, *times))
    if fitting := [candidate for candidate in found if candidate.memory.peak_bytes <= cluster.usable_bytes]:
        yield min(fitting, key=lambda candidate: candidate.seconds)
    elif found:
        yield min(found, key=lambda candidate: candidate.memory.peak_bytes)


def finetuning(model: ModelConfig, vocab_size: int, row_tokens: int, train: TrainConfig, cluster: Cluster, best: Candidate) -> Candidate:
    """The same layout with the micro-batch and checkpointing that suit a finetuning on a batch of these rows.

    Raises: RecipeError if the layout doesn't divide the batch.
    """
    found = next(_fastest(shape.of(model, vocab_size, train.objective), model, row_tokens, train, cluster, best.layout), None)
    if found is None:
        raise RecipeError(
            f"layout {best.name} can't finetune",
            value=f"{train.global_batch_size} rows on {cluster.gpus} GPUs",
            remedy="set finetune.train as train is set, or finetune.train.global_batch_size to a multiple of the GPUs",
        )
    return found


def _trains(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> bool:
    """Whether the engine takes it."""
    try:
        parallel.check(layout, model, train, row_tokens, workers)
    except RecipeError:
        return False
    return True


def step_seconds(
    whole: Shape, row_tokens: int, train: TrainConfig, cluster: Cluster, layout: LayoutConfig, replicate: int
) -> tuple[float, float, float]:
    """Arithmetic, exchange that it doesn't hide, and bubble of one step.

    Rings move 2 (n - 1) / n of what they reduce and (n - 1) / n of what they gather. Sharded data parallelism gathers
    weights twice and scatters gradients once per micro-batch; tensor parallelism moves a layer's activations through four
    reductions, none of them hidden; context parallelism passes keys and values around; a pipeline of p stages
    idles for (p - 1) / m of its m micro-batches, and is as slow as its last stage, which also has the head. Of experts that
    are spread out no weights are gathered; their tokens travel there and back, forwards and backwards.

    Source: FSDP, https://arxiv.org/abs/2304.11277; Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, and
    https://arxiv.org/abs/2104.04473, sections 2.2 and 3.2; rings, https://arxiv.org/abs/2310.01889; experts, GShard,
    https://arxiv.org/abs/2006.16668, section 3.2.
    """
    micro_batches = train.global_batch_size // (replicate * layout.shard * train.micro_batch_size)
    tokens = train.micro_batch_size * row_tokens // layout.context
    layers = -(-whole.num_layers // layout.pipeline)
    precision = "fp32" if train.precision == "fp32" else "fp8" if train.precision == "fp8" else "bf16"
    rate = cluster.chip.flops(precision) * EXPECTED_MFU["cuda"]
    rate /= 1 + TENSOR_SLOWDOWN * (layout.tensor.bit_length() - 1)
    rate *= tokens / (tokens + 512)  # short matrices don't fill a GPU
    share = layout.tensor * layout.pipeline
    slowest = (whole.active + (layout.pipeline - 1) * whole.told * whole.head) / whole.active
    flops = shape.flops_per_token(whole, row_tokens) * slowest / share * RECOMPUTED[train.activation_checkpointing]
    compute = micro_batches * tokens * (flops + teachers.flops_per_token(train, row_tokens)) / rate
    number_bytes = 4 if precision == "fp32" else 2
    weights = whole.parameters / share
    spread = layout.tensor * layout.context
    gathered_weights = (whole.parameters - whole.experts * (layout.expert > 1)) / share
    gathered = 3 * number_bytes * gathered_weights * micro_batches * _ring(layout.shard) / cluster.bandwidth(layout.shard * spread)
    reduced = 2 * 4 * weights / layout.shard * _ring(replicate) / cluster.bandwidth(replicate * layout.shard * spread)
    hidden = max(0.0, 1 - HIDDEN_SHARE * compute / (gathered + reduced)) if gathered + reduced else 0.0
    visible = (gathered + reduced) * max(hidden, 1 - HIDDEN_SHARE)
    activations = tokens * whole.width * number_bytes
    visible += micro_batches * layers * 4 * 2 * activations * _ring(layout.tensor) / cluster.bandwidth(layout.tensor)
    visible += 0.5 * micro_batches * layers * 4 * activations * (layout.context - 1) / cluster.bandwidth(spread)
    visits = sum(layer.count * layer.visits for layer in whole.layers)
    visible += micro_batches * 4 * visits * activations * _ring(layout.expert) / cluster.bandwidth(layout.expert)
    if layout.pipeline > 1:
        visible += 2 * micro_batches * activations / layout.tensor / cluster.bandwidth(cluster.gpus)
    bubble = (compute + visible) * (layout.pipeline - 1) / micro_batches
    return compute, visible, bubble


def _ring(size: int) -> float:
    return (size - 1) / size


def _reasons(best: Candidate, candidates: list[Candidate], have_bytes: float) -> Iterator[str]:
    """One line for each combination of kinds that was looked at: the simpler first, of those the faster first."""
    by_kinds: dict[frozenset[str], Candidate] = {}
    for candidate in candidates:
        fits = candidate.memory.peak_bytes <= have_bytes
        known = by_kinds.get(candidate.kinds)
        if known is None or (fits, -candidate.seconds) > (known.memory.peak_bytes <= have_bytes, -known.seconds):
            by_kinds[candidate.kinds] = candidate
    by_kinds.pop(best.kinds, None)
    for candidate in sorted(by_kinds.values(), key=lambda each: (len(each.kinds), each.memory.peak_bytes > have_bytes, each.seconds)):
        if candidate.memory.peak_bytes > have_bytes:
            needed = f"{candidate.memory.peak_bytes / 2**30:.0f} GiB a GPU, {have_bytes / 2**30:.0f} usable"
            yield f"{candidate.name}: doesn't fit, {needed}"
        elif candidate.seconds > best.seconds:
            yield f"{candidate.name}: {candidate.seconds / best.seconds - 1:.0%} slower, {_culprit(candidate, best)}"
        else:
            yield f"{candidate.name}: {1 - candidate.seconds / best.seconds:.0%} faster, not worth another kind of parallelism"


def _culprit(candidate: Candidate, best: Candidate) -> str:
    """What makes it slower than the best: the part that grew most."""
    more = "an uneven last stage" if candidate.layout.pipeline > best.layout.pipeline else "thinner matrices"
    if candidate.checkpointing != best.checkpointing:
        more = f"checkpointing {candidate.checkpointing}"
    grown = {
        more: candidate.compute_seconds - best.compute_seconds,
        "exchange": candidate.exchange_seconds - best.exchange_seconds,
        "idle pipeline stages": candidate.bubble_seconds - best.bubble_seconds,
    }
    return max(grown, key=grown.__getitem__)
