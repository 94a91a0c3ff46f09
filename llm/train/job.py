"""What decides a trained model, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llm import artifact
from llm.data.hashing import weight_fingerprints
from llm.data.rows import Rows
from llm.errors import ArtifactError, DataError, RecipeError
from llm.model import families, origin, sizes
from llm.model.config import ModelConfig
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.objective.config import DistillationConfig
from llm.train.parallel.check import check
from llm.train.parallel.world import World

SELECTION_BIAS = "bias_E"  # of routers that are balanced by it
NOT_DECISIVE = {"keep_checkpoints", "keep_every_steps", "keep_best", "initial"}  # which checkpoints stay; where weights lie


@dataclass(frozen=True)
class TrainJob:
    """What decides a trained model, and the folder that survives between attempts at it."""

    rows: Path  # a tokenize or chat artifact
    model: ModelConfig
    train: TrainConfig
    seed: int
    work: Path  # checkpoints/, metrics.jsonl, and in the end final/
    initial: Path | None = None  # a folder of weights to continue from; None starts from random weights
    device: str = "auto"  # auto, cpu or cuda
    cluster: ClusterConfig = field(default_factory=ClusterConfig)  # layout, budget, timeouts: nothing here decides the weights

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the weights; a checkpoint of another fingerprint is refused.

        Rows of an artifact, which was verified when it was found, are told by its manifest; others are read, all of them.
        """
        objective = self.train.objective
        teacher = Path(objective.teacher) if isinstance(objective, DistillationConfig) else None
        splits = ("train", "validation") if self.train.stop_after_validations else ("train",)
        files = [self.rows / "rows.json", *(path for split in splits for path in self.rows.glob(f"{split}.*"))]
        stated = artifact.stated_hashes(self.rows)
        return artifact.sha256_of(
            {
                "model": self.model.model_dump(mode="json"),
                "train": self.train.model_dump(mode="json", exclude=NOT_DECISIVE),
                "seed": self.seed,
                "rows": {path.name: stated.get(path.name) or artifact.sha256_file(path) for path in files},
                "initial": weight_fingerprints(self.initial) if self.initial else None,
                "teacher": weight_fingerprints(teacher) if teacher else None,
            }
        )


def initial_model(job: TrainJob, vocab_size: int) -> Any:
    """Random weights from the seed, or those of `job.initial`.

    Raises: ArtifactError if the initial weights have other sizes than the job, or fewer token ids than the rows.
    """
    if job.initial is None:
        torch.manual_seed(job.seed)
        return families.build(job.model, vocab_size)
    origin_model = origin.load(job.initial)
    if origin_model.vocab_size < vocab_size:
        raise ArtifactError(
            "initial weights have fewer token ids than the rows",
            value=f"{origin_model.vocab_size} instead of {vocab_size} in {job.initial}",
            remedy="train with that model's tokenizer; a mask token that it has is train.objective.mask_id",
        )
    if different := sizes.differences(origin_model.config, job.model):
        raise ArtifactError(
            "initial weights have other sizes than the job",
            value=f"{', '.join(different)} in {job.initial}",
            remedy="train from a model of this `model` section",
        )
    model = families.build(job.model, origin_model.vocab_size)
    unmatched = model.load_state_dict(origin_model.state_dict(), strict=False)
    strange = [name for name in (*unmatched.missing_keys, *unmatched.unexpected_keys) if not name.endswith(SELECTION_BIAS)]
    if strange:
        raise ArtifactError("initial weights have other tensors than the job", value=", ".join(strange[:3]), remedy="set `model` as theirs")
    return model


def check_sizes(job: TrainJob, world: World) -> None:
    """Raises: RecipeError if batch or rows don't fit workers or model, DataError if there is no row."""
    rows = Rows.open(job.rows, "train")
    if len(rows) == 0:
        raise DataError("no training row", value=job.rows, remedy="collect more text, or set tokenize.row_tokens lower")
    if rows.row_tokens > job.model.max_positions:
        raise RecipeError("rows are longer than the model handles", value=rows.row_tokens, remedy="set model.max_positions to it")
    check(job.cluster.layout, job.model, job.train, rows.row_tokens, world.size)
