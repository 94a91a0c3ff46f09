"""Checkpoints: what a run continues from after a lost worker or a killed driver.

    checkpoints/step-00000040/            shards of torch.distributed.checkpoint, history.jsonl, progress.json, manifest.json
    checkpoints/.tmp-step-00000080-<id>/  what an attempt is writing; nobody reads it

Randomness and the sample stream are pure functions of (seed, step, rank), and the learning rate of the step:
the manifest's `seed` and `step` are their whole state.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from llm import artifact
from llm.errors import ArtifactError
from llm.train.parallel.world import World

SCHEMA = 1
HISTORY = "history.jsonl"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one job; every worker calls `save` and `restore` at the same time."""

    folder: Path
    fingerprint: str  # of the job: model, settings, rows, seed, initial weights
    seed: int
    keep: int
    world: World

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: list[Optimizer],
        progress: dict[str, Any],
        average: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Commit the state after `step`, then drop the oldest beyond `keep`.

        `progress` is what the loop goes on from besides tensors: JSON values by name, its "history" a list with a record
        per step. `average` holds averaged weights by parameter name.

        Raises: ArtifactError if the disk is full or read-only, or what was written doesn't verify.
        """
        final = self.folder / f"step-{step:08d}"
        with artifact.named_errors(self.folder):
            temporary = self.world.first(lambda: self._temporary(final.name))
            _write(_state(model, optimizers, average), temporary, self.world)
            self.world.first(lambda: self._commit(step, temporary, final, progress))

    def _temporary(self, name: str) -> Path:
        """A new folder that no other attempt knows, not even one whose driver is gone and whose workers write on.

        Whatever else lies unfinished is removed: rank 0 calls this, alone, and holds the job's lock.
        """
        for left in self.folder.glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = self.folder / f".tmp-{name}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        return temporary

    def _commit(self, step: int, temporary: Path, final: Path, progress: dict[str, Any]) -> None:
        write_history(temporary / HISTORY, progress["history"])
        artifact.write_json(temporary / PROGRESS, {name: value for name, value in progress.items() if name != "history"})
        facts = {"step": step, "seed": self.seed, "fingerprint": self.fingerprint, "workers": self.world.size}
        artifact.commit(temporary, final, {"schema": SCHEMA, "stage": "checkpoint", **facts})
        artifact.verified_manifest(final)
        for old in self._found()[: -self.keep]:
            shutil.rmtree(old)

    def restore(
        self, model: nn.Module, optimizers: list[Optimizer], average: Mapping[str, Tensor] | None = None
    ) -> dict[str, Any] | None:
        """Put the newest checkpoint that verifies into model, optimizers and `average`; its progress, None for a fresh start.

        Raises: ArtifactError if that checkpoint belongs to another job.
        """
        path = self.world.first(self.latest)
        if path is None:
            return None
        state = _state(model, optimizers, average)
        with _no_advice():
            state_dict_loader.load(state, checkpoint_id=path, no_dist=self.world.size == 1)
        set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return json.loads((path / PROGRESS).read_text(encoding="utf-8")) | {"history": read_history(path / HISTORY)}

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies; damaged ones on the way are renamed `.corrupt-…`."""
        for path in reversed(self._found()):
            try:
                manifest = artifact.verified_manifest(path)
            except ArtifactError:
                path.rename(path.with_name(f".corrupt-{path.name}-{time.time_ns()}"))
                continue
            if manifest["fingerprint"] != self.fingerprint:
                raise ArtifactError(
                    "checkpoint belongs to another job", value=path, remedy="delete this folder, or train in another work folder"
                )
            return path
        return None

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _state(model: nn.Module, optimizers: list[Optimizer], average: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """The tensors of a training, under names that no number of workers changes; loading fills them in place."""
    weights, moments = get_state_dict(model, optimizers)
    return {"model": weights, "optimizer": moments} | ({"average": dict(average)} if average else {})


def _write(state: dict[str, Any], folder: Path, world: World) -> None:
    """Save the shards of every worker; the first worker's failure is raised on all of them."""
    try:
        with _no_advice():
            state_dict_saver.save(state, checkpoint_id=folder, no_dist=world.size == 1)
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        if not isinstance(cause, RuntimeError):
            raise cause from error
        remedy = "free space, or set TRAINYARD_HOME to a larger disk"  # torch keeps the system's own reason to itself
        raise ArtifactError("checkpoint can't be written", value=f"{folder} ({cause})", remedy=remedy) from error


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Silence torch's remark that one worker has no process group: it needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON line per step; every digit of a float survives."""
    path.write_text("".join(json.dumps(record, sort_keys=True) + "\n" for record in history), encoding="utf-8")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records that `write_history` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def sole_writer(work: Path, world: World, timeout_seconds: float = 60.0) -> Iterator[None]:
    """Hold `work` for this group of workers; the kernel frees it when rank 0 dies.

    A worker whose driver was killed may write on for a moment after the next run has begun.

    Raises: ArtifactError if another group still holds it after the timeout.
    """
    with (work / ".lock").open("w") as handle:
        world.first(lambda: _lock(handle.fileno(), work, timeout_seconds))
        yield


def _lock(descriptor: int, work: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ArtifactError("another run is training here", value=work, remedy="wait for it, or stop it") from error
            time.sleep(0.2)
