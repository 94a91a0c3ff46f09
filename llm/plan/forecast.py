"""A plan's predictions in words: memory, time, cost, data and layout, a line for each."""

from __future__ import annotations

from llm.errors import RecipeError
from llm.export.huggingface_config import check_expressible, document
from llm.model import sizes
from llm.plan import cost, machine
from llm.plan.check import available_text_bytes, predicted
from llm.plan.cost import Data
from llm.plan.layout import Candidate, Cluster, choose, finetuning
from llm.plan.machine import Machine
from llm.plan.measure import Measured
from llm.plan.memory import Memory
from llm.recipe import Recipe
from llm.stages import GRAPH, nodes
from llm.train import devices
from llm.train.config import TrainConfig
from llm.train.devices import Device

Lines = list[tuple[str, str]]  # label and text
MOST_REASONS = 6


def trainings(recipe: Recipe, flow: str) -> dict[str, TrainConfig]:
    """The trainings that a flow makes, by stage.

    Raises: RecipeError if the flow needs more of the architecture than there is.
    """
    places = nodes(flow, recipe.model.architecture)
    every = {"base.pretrain": recipe.train, "tuned.finetune": recipe.finetune.train}
    return {GRAPH[node].stage: train for node, train in every.items() if node in places}


def here(recipe: Recipe, stage: str, train: TrainConfig, measured: Measured | None = None) -> Lines:
    """What a training takes on this machine; refined by measured steps of one worker, where there are some."""
    this = machine.this(recipe.cluster)
    chip = devices.gpu(this.gpu) if this.device == "cuda" else devices.measured_cpu(recipe.cluster.threads_per_worker)
    rate = measured.tokens_per_second * recipe.cluster.workers if measured else None
    found = _training(recipe, stage, train) + _model(recipe, train) + _memory(predicted(recipe, train, this))
    if measured:
        found.append(("", f"measured {_size(measured.peak_bytes)} at most, in {measured.seconds_per_step:.3g} s a step"))
    found += _cost(recipe, train, this, chip, rate, measured)
    return found + (_data(cost.data(recipe, train, available_text_bytes(recipe))) if stage == "pretrain" else [])


def elsewhere(recipe: Recipe, cluster: Cluster, *, finetunes: bool = True) -> Lines:
    """The layout to take on another cluster for pretraining, why, and what each training would take there.

    Raises: CapacityError if no layout fits, RecipeError if none divides.
    """
    vocab_size, row_tokens, train = recipe.tokenize.vocab_size, recipe.tokenize.row_tokens, recipe.train
    choice = choose(recipe.model, vocab_size, row_tokens, train, cluster)
    best, tuning = choice.best, _on_more_workers(recipe.finetune.train, choice.best)
    tuned = finetuning(recipe.model, vocab_size, row_tokens, tuning, cluster, best)
    found = _training(recipe, "pretrain", train) + _model(recipe, train) + _memory(best.memory, f" of {cluster.memory_gib:.0f} GiB")
    machines = f"{cluster.gpus} × {cluster.chip.name} of {cluster.memory_gib:.0f} GiB, {cluster.gpus_per_node} a machine"
    found += [("layout", f"{best.name}, on {machines}"), _step(best)]
    found += [("why not" if number == 0 else "", reason) for number, reason in enumerate(choice.why[:MOST_REASONS])]
    found.append(("set", " ".join(f"--set {name}={value}" for name, value in _settings(recipe, cluster, best, tuned, tuning).items())))
    found += _cost_there(recipe, train, cluster, best) + _data(cost.data(recipe, train, None))  # its text lies there
    if finetunes:
        found += _training(recipe, "finetune", tuning) + _memory(tuned.memory, f" of {cluster.memory_gib:.0f} GiB") + [_step(tuned)]
        found += _cost_there(recipe, tuning, cluster, tuned)
    return found


def exported(recipe: Recipe) -> Lines:
    """Which folders export will write of this architecture, and for whom."""
    graphs = "encoder_model.onnx and decoder_model_merged.onnx" if recipe.model.architecture == "encoder_decoder" else "model.onnx"
    written = document(recipe.model, recipe.tokenize.vocab_size, {})
    try:
        check_expressible(recipe.model, written)
        return [("export", f"onnx/ with {graphs}; huggingface/ with {written['architectures'][0]}")]
    except RecipeError as error:
        return [("export", f"onnx/ with {graphs}; weights/ instead of huggingface/"), ("", str(error))]


def _on_more_workers(train: TrainConfig, best: Candidate) -> TrainConfig:
    """A finetuning whose batch is as much larger as a layout's workers and stages need, without a ramp."""
    parts = best.replicate * best.layout.shard * best.layout.pipeline
    return train.model_copy(update={"global_batch_size": -(-train.global_batch_size // parts) * parts, "ramp": None})


def _settings(recipe: Recipe, cluster: Cluster, best: Candidate, tuned: Candidate, tuning: TrainConfig) -> dict[str, object]:
    """What to change in the recipe for a layout, so that it loads."""
    given, before = recipe.cluster, recipe.finetune.train
    settings: dict[str, object] = {"cluster.workers": cluster.gpus}
    degrees = best.layout.model_dump() | {"replicate": best.replicate if given.layout.replicate else None}
    settings |= {f"cluster.layout.{kind}": degree for kind, degree in degrees.items() if degree != getattr(given.layout, kind)}
    if given.min_workers and given.min_workers > cluster.gpus:
        settings["cluster.min_workers"] = "null"
    if given.in_process and cluster.gpus > 1:
        settings["cluster.in_process"] = "false"
    settings |= {"train.micro_batch_size": best.micro_batch_size, "train.activation_checkpointing": best.checkpointing}
    if tuning.global_batch_size != before.global_batch_size:
        settings["finetune.train.global_batch_size"] = tuning.global_batch_size
    if before.ramp:
        settings["finetune.train.ramp"] = "null"
    if tuned.micro_batch_size != before.micro_batch_size:
        settings["finetune.train.micro_batch_size"] = tuned.micro_batch_size
    if tuned.checkpointing != before.activation_checkpointing:
        settings["finetune.train.activation_checkpointing"] = tuned.checkpointing
    return settings


def _training(recipe: Recipe, stage: str, train: TrainConfig) -> Lines:
    return [(stage, f"{train.steps:,} steps of {train.global_batch_size:,} rows of {recipe.tokenize.row_tokens:,} tokens")]


def _step(chosen: Candidate) -> tuple[str, str]:
    parts = {"arithmetic": chosen.compute_seconds, "visible exchange": chosen.exchange_seconds, "idle stages": chosen.bubble_seconds}
    return "step", f"{chosen.seconds:.3g} s: " + ", ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items() if seconds)


def _cost_there(recipe: Recipe, train: TrainConfig, cluster: Cluster, chosen: Candidate) -> Lines:
    """Of a training on another cluster."""
    enlarged = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"workers": cluster.gpus})})
    changed = train.model_copy(update={"micro_batch_size": chosen.micro_batch_size, "activation_checkpointing": chosen.checkpointing})
    this = Machine("cuda", cluster.chip.name, cluster.gpus, int(cluster.memory_gib * 2**30))
    return _cost(enlarged, changed, this, cluster.chip, train.global_batch_size * recipe.tokenize.row_tokens / chosen.seconds)


def _model(recipe: Recipe, train: TrainConfig) -> Lines:
    vocab_size = recipe.tokenize.vocab_size
    whole, active = sizes.parameters(recipe.model, vocab_size), sizes.active_parameters(recipe.model, vocab_size)
    visited = f", {active:,} of them for each token" if active < whole else ""
    return [("model", f"{whole:,} parameters{visited}, {_count(cost.flops_per_token(recipe, train))}FLOPs a token")]


def _memory(needed: Memory, have: str = "") -> Lines:
    parts = {
        "parameters": needed.parameters_bytes,
        "gradients": needed.gradients_bytes,
        "optimizer": needed.optimizer_bytes,
        "activations": needed.activations_bytes,
        "logits": needed.logits_bytes,
        "checkpoint copy": needed.checkpoint_bytes,
        "teacher": needed.teacher_bytes,
        "libraries": needed.process_bytes,
    }
    if needed.heap_share:
        parts["allocator"] = int((needed.peak_bytes - needed.process_bytes) * needed.heap_share / (1 + needed.heap_share))
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    moment = "turn from forward to backward" if needed.peak_moment == "backward" else "optimizer's update"
    return [("memory", f"{_size(needed.peak_bytes)}{have} per worker at most, at the {moment}"), ("", listed)]


def _cost(recipe: Recipe, train: TrainConfig, this: Machine, chip: Device, rate: float | None, measured: Measured | None = None) -> Lines:
    precision = train.precision if train.precision != "auto" else "bf16" if this.bf16("auto") else "fp32"
    workers = recipe.cluster.workers
    total = cost.estimate(recipe, train, chip, precision=precision, cuda=this.device == "cuda", tokens_per_second=rate)
    source = f"{total.mfu:.0%} of {workers} × {chip.name} in {precision}"
    if measured:
        source += f"; one worker measured, {workers} assumed to be {workers} times as fast" if workers > 1 else "; measured"
    return [
        ("time", f"{_duration(total.seconds)} for {_count(total.tokens)} tokens at {total.tokens_per_second:,.0f} a second ({source})"),
        ("cost", f"${_amount(total.usd)}, {_amount(total.kwh)} kWh, {_amount(total.kg_co2e)} kg CO₂e"),
    ]


def _data(data: Data) -> Lines:
    epochs = f"; the text is read {data.epochs:.1f} times" if data.epochs else ""
    suited = f"{_count(data.tokens)} tokens, of {_count(data.suited_tokens)} that suit the model{epochs}"
    return [("data", suited), *(("warning", warning) for warning in data.warnings)]


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def _amount(number: float) -> str:
    """Example:
    >>> _amount(0.00123), _amount(1_669_914.85)
    ('0.0012', '1,669,915')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _count(number: float) -> str:
    """Example:
    >>> _count(1_433_600), _count(15e12)
    ('1.43 M', '15 T')
    """
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g} {letter}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    for scale, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * scale:
            return f"{seconds / scale:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
