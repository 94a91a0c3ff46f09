"""Whether a layout fits its workers, model and batch: known from the recipe alone, before anything starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from llm.errors import RecipeError
from llm.model.config import DecoderConfig, Gpt2Config, ModelConfig, MoeConfig
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.parallel.config import LayoutConfig

CUT_ALONG = {"pipeline": "layers", "context": "sequence", "tensor": "matrices"}


def check(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> None:
    """Nothing, if every degree divides what it cuts and every combination is one that trains like a single worker.

    Raises: RecipeError, one line, that names the setting to change.

    Example:
        >>> model = DecoderConfig(width=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=128)
        >>> train = TrainConfig(steps=10, global_batch_size=8, micro_batch_size=2, schedule={"warmup_steps": 1})
        >>> check(LayoutConfig(tensor=4), model, train, row_tokens=16, workers=4)
        Traceback (most recent call last):
        llm.errors.RecipeError: layout.tensor 4 does not divide model.num_kv_heads: 2; set cluster.layout.tensor to a divisor
    """
    for problems in (_workers, _families, _pipeline, _context, _tensor, _expert):
        for problem in problems(layout, model, train, row_tokens, workers):
            raise problem


def check_elastic(cluster: ClusterConfig) -> None:
    """Raises: RecipeError if a group that may shrink holds parts of one model."""
    if cluster.min_workers is not None and cluster.layout.model_workers > 1:
        raise RecipeError(
            "workers that hold parts of one model can't come and go", value=cluster.min_workers, remedy="set cluster.min_workers to null"
        )


def replicas(layout: LayoutConfig, workers: int) -> int:
    """Whole copies of the model that so many workers hold."""
    return workers // layout.model_workers


Problems = Iterator[RecipeError]


def _workers(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> Problems:
    copies = replicas(layout, workers)
    if workers % layout.model_workers:
        remedy = f"set cluster.workers to a multiple of {layout.model_workers}"
        yield RecipeError(f"one copy of the model takes {layout.model_workers} workers, which do not divide", value=workers, remedy=remedy)
    if layout.replicate not in (None, copies):
        remedy = f"set cluster.layout.replicate to {copies}"
        fact = f"layout.replicate is {layout.replicate}, but {workers} workers hold another number of copies of the model"
        yield RecipeError(fact, value=copies, remedy=remedy)
    readers = copies * layout.shard
    rows = train.ramp.rows if train.ramp else train.global_batch_size
    if rows < readers:
        setting = "train.ramp.rows" if train.ramp else "train.global_batch_size"
        yield RecipeError("batch has fewer rows than workers that read rows", value=rows, remedy=f"set {setting} to {readers} or more")


def _families(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> Problems:
    """What cuts a model, and not only its parameters, knows how a decoder is built and learns the next token."""
    for degree, cut in CUT_ALONG.items():
        if getattr(layout, degree) == 1:
            continue
        remedy = f"set cluster.layout.{degree} to 1"
        if not isinstance(model, (DecoderConfig, Gpt2Config)):
            yield RecipeError(f"layout.{degree} cuts the {cut} of a decoder or gpt2 only", value=model.architecture, remedy=remedy)
        if train.objective.kind != "next_token":
            yield RecipeError(f"layout.{degree} knows the next_token objective only", value=train.objective.kind, remedy=remedy)


def _pipeline(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> Problems:
    stages = layout.pipeline
    if stages == 1 or not isinstance(model, (DecoderConfig, Gpt2Config)):
        return
    if model.num_layers < stages:
        remedy = f"set cluster.layout.pipeline to {model.num_layers} or less"
        yield RecipeError(f"{stages} pipeline stages for fewer layers", value=model.num_layers, remedy=remedy)
    if model.tied_embeddings:
        yield RecipeError(
            "embedding and head are one matrix, but the first and the last pipeline stage hold them",
            value="model.tied_embeddings true",
            remedy="set model.tied_embeddings to false, or cluster.layout.pipeline to 1",
        )
    rows = train.global_batch_size // (replicas(layout, workers) * layout.shard)
    if rows < stages * train.micro_batch_size:
        remedy = f"set train.micro_batch_size to {max(1, rows // stages)} or less, or train.global_batch_size higher"
        yield RecipeError(f"a step has fewer micro-batches per worker than {stages} pipeline stages", value=f"{rows} rows", remedy=remedy)


def _context(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> Problems:
    """Both ends of the sequence are dealt out, hence the factor 2; see context.py."""
    if layout.context == 1:
        return
    parts, remedy = 2 * layout.context * layout.tensor, "or cluster.layout.context to 1"
    if row_tokens % parts:
        yield RecipeError(f"row_tokens is no multiple of {parts}", value=row_tokens, remedy=f"set tokenize.row_tokens to one, {remedy}")
    refused = {"document_mask": False, "activation_checkpointing": "none", "compile": False}
    for name, needed in refused.items():
        if (value := getattr(train, name)) != needed:
            setting = f"set train.{name} to {str(needed).lower()}, {remedy}"
            yield RecipeError(f"layout.context does not work with train.{name}", value=value, remedy=setting)


def _tensor(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> Problems:
    if layout.tensor == 1 or not isinstance(model, (DecoderConfig, Gpt2Config)):
        return
    if train.precision == "fp8":
        remedy = "set train.precision to bf16, or cluster.layout.tensor to 1"
        yield RecipeError("layout.tensor cuts no float8 matrices", value=train.precision, remedy=remedy)
    if train.optimizer.state_bits == 8 and train.optimizer.kind != "muon":
        remedy = "set train.optimizer.state_bits to 32, or cluster.layout.tensor to 1"
        yield RecipeError(
            "layout.tensor cuts rows of matrices, and 8-bit moments need whole ones", value=train.optimizer.kind, remedy=remedy
        )
    kv_heads = {"model.num_kv_heads": model.num_kv_heads} if isinstance(model, DecoderConfig) else {}
    cut = {"model.num_heads": model.num_heads, **kv_heads, "model.ffn_width": model.ffn_width, "tokenize.row_tokens": row_tokens}
    for setting, size in cut.items():
        if size % layout.tensor:
            remedy = "set cluster.layout.tensor to a divisor"
            yield RecipeError(f"layout.tensor {layout.tensor} does not divide {setting}", value=size, remedy=remedy)


def _expert(layout: LayoutConfig, model: ModelConfig, train: TrainConfig, row_tokens: int, workers: int) -> Problems:
    if layout.expert == 1:
        return
    if not isinstance(model, MoeConfig):
        yield RecipeError("layout.expert needs experts", value=model.architecture, remedy="set cluster.layout.expert to 1")
    elif model.num_experts % layout.expert:
        remedy = "set cluster.layout.expert to a divisor"
        yield RecipeError(f"layout.expert {layout.expert} does not divide model.num_experts", value=model.num_experts, remedy=remedy)
    if layout.expert != layout.shard or replicas(layout, workers) > 1:
        remedy = "set cluster.layout.shard to cluster.layout.expert and replicate to 1"
        yield RecipeError("experts are spread over all workers that share parameters, or none", value=layout.expert, remedy=remedy)
