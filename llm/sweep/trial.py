"""One trial: an ordinary `pretrain` job of the graph, watched from validation to validation.

A trial's key is that of the stage, so a sweep and a run of the same recipe share the trained model: finished trials are
found, a killed one goes on from the checkpoints in its work folder, and what is recommended is trained already, but for a population.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from llm.artifact import Artifact, Store
from llm.model import sizes
from llm.model.config import parse_model
from llm.provenance import provenance
from llm.recipe import Recipe
from llm.stages import Job
from llm.train.parallel.config import LayoutConfig

POLL_SECONDS = 0.5
ONE_WORKER: dict[str, Any] = {"workers": 1, "min_workers": None, "layout": LayoutConfig()}  # of a cluster: a trial isn't split

Curve = tuple[tuple[int, float], ...]  # the metric by step


@dataclass(frozen=True)
class Trial:
    """One candidate, ready to be trained on a worker."""

    number: int
    settings: dict[str, Any]
    job: Job
    metric: str
    after_steps: int = 0  # steps of the trials from whose weights it goes on

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate(self.job.recipe)

    @property
    def store(self) -> Store:
        return Store(Path(self.job.store))

    @property
    def work(self) -> Path:
        """Where its checkpoints lie until it has finished."""
        return self.store.work(self.job.stage, self.job.key)

    def find(self) -> Artifact | None:
        """The trained model, if the store holds it."""
        return self.store.find(self.job.stage, self.job.key)


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    number: int
    settings: dict[str, Any]
    key: str
    state: str  # finished | stopped | failed
    curve: Curve
    error: str = ""
    parameters: int = 0  # of a finished one
    tokens: int = 0  # counted targets that a finished one was trained on

    @property
    def value(self) -> float:
        """The metric at the last validation; infinite for a failed trial."""
        return self.curve[-1][1] if self.curve and self.state != "failed" else math.inf

    @property
    def ended(self) -> bool:
        """Whether it was trained to its end and can be compared."""
        return self.state == "finished" and math.isfinite(self.value)


def measured(trial: Trial, device: str) -> Iterator[tuple[int, float]]:
    """Train, and yield the metric at each validation as it becomes known; the last one once the model is in the store.

    Validations of earlier attempts come first, before anything is trained: what was stopped then is stopped again.

    Raises: what `train` raises.
    """
    told, artifact = 0, trial.find()
    if artifact is None:
        last, records, training = trial.recipe.train.steps, trial.work / "metrics.jsonl", None
        with ThreadPool(1) as pool:  # its thread ends with the process: whoever stops a trial ends its process
            while training is None or not training.ready():
                for step, value in validations(records, trial.metric):
                    if told < step < last:
                        told = step
                        yield step, value
                training = training or pool.apply_async(_produce, (trial, device))
                training.wait(POLL_SECONDS)
            artifact = training.get()
    yield from ((step, value) for step, value in validations(artifact.path / "history.jsonl", trial.metric) if step > told)


def _produce(trial: Trial, device: str) -> Artifact:
    """The trial's artifact, trained in the work folder where the checkpoints of a killed attempt wait."""
    from llm.train.job import TrainJob
    from llm.train.loop import train

    job, recipe, work = trial.job, trial.recipe, trial.work
    training = TrainJob(
        rows=Path(job.parents["tokenized"].path),
        model=recipe.model,
        train=recipe.train,
        seed=recipe.seed,
        work=work,
        initial=Path(recipe.train.initial).absolute() if recipe.train.initial else None,
        device=device,
        cluster=recipe.cluster.model_copy(update=ONE_WORKER),
    )

    def build(out: Path) -> dict[str, Any]:
        train(training)
        shutil.copytree(work / "final", out, dirs_exist_ok=True)
        cost = json.loads((out / "log" / "cost.json").read_text())
        return {"workers": 1, "device": cost["device"], "gpu_seconds": cost["seconds"] * (cost["device"] == "cuda")}

    return trial.store.produce(job.stage, job.key, provenance(job), build)


def outcome(trial: Trial, error: str = "") -> Outcome:
    """What the store knows of a trial that has had its turn; `error` is why it failed, if it did."""
    if artifact := trial.find():
        history = read_records(artifact.path / "history.jsonl")
        return Outcome(
            number=trial.number,
            settings=trial.settings,
            key=trial.job.key,
            state="finished",
            curve=_later(validations(artifact.path / "history.jsonl", trial.metric), trial.after_steps),
            parameters=_parameters(artifact.path),
            tokens=history[-1]["tokens"],
        )
    curve = _later(validations(trial.work / "metrics.jsonl", trial.metric), trial.after_steps)
    return Outcome(trial.number, trial.settings, trial.job.key, "failed" if error else "stopped", curve, error)


def _later(curve: Curve, steps: int) -> Curve:
    """The curve of a trial that goes on where another one ended."""
    return tuple((step + steps, value) for step, value in curve)


def _parameters(model: Path) -> int:
    """Trained numbers of a model in its folder, where the vocabulary includes the ids that its objective added."""
    document = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return sizes.parameters(parse_model(document["model"]), int(document["vocab_size"]))


def validations(path: Path, metric: str) -> Curve:
    """The metric at every step that validated, in order; a step that two attempts reached counts once."""
    found = {record["step"]: record[metric] for record in read_records(path) if "validation_loss" in record and metric in record}
    return tuple(sorted(found.items()))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines that may be growing; none if it isn't there."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
