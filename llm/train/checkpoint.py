"""Checkpoints: what a run continues from after a lost worker or a killed driver.

    checkpoints/step-00000040/            shards of torch.distributed.checkpoint, history.jsonl, progress.json, manifest.json
    checkpoints/.tmp-step-00000080-<id>/  what an attempt is writing; nobody reads it

A save copies the state to memory of its own and lets training go on; a thread writes, hashes and commits the copy. It isn't read
back: what the disk damages is found when the checkpoint is read, and the one before, which is always kept, takes its place.
Randomness and the sample stream are pure functions of (seed, step, rank), and the learning rate of the step:
the manifest's `seed` and `step` are their whole state.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import itertools
import json
import math
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from torch.utils.serialization import config as serialization

from llm import artifact
from llm.errors import ArtifactError
from llm.failpoint import failpoint
from llm.train import direct
from llm.train.parallel.world import World
from llm.train.patience import Patience
from llm.train.retention import Retention, best_step

SCHEMA = 1
HISTORY = "history.jsonl"
PROGRESS = "progress.json"
History = Sequence[Mapping[str, Any]]  # a record per step
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # stages of a pipeline have different parameter groups


class Checkpoints:
    """The checkpoints of one job; every worker calls each method at the same time."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        seed: int,
        retention: Retention,
        world: World,
        *,
        background: bool = False,
        patience_seconds: float = 0.0,
    ) -> None:
        """`fingerprint` is of the job: model, settings, rows, seed, initial weights. `background` writes beside training.

        A folder that is away for less than `patience_seconds` is waited for: at once, by the thread that writes, and by training
        where it needs that thread's save to have ended.

        Raises: OSError if the folder can't be made; none above it is, which would stand in the way of storage that is away.
        """
        self.folder, self.fingerprint, self.seed, self.retention, self.world = folder, fingerprint, seed, retention, world
        self.background, self.patience = background, Patience(patience_seconds)
        self.patience.retry(lambda: folder.mkdir(exist_ok=True))
        self.stager = _stager(world.device)
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None  # a thread must not meet the gradients' collectives
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: list[Optimizer],
        progress: dict[str, Any],
        average: Mapping[str, Tensor] | None = None,
        *,
        healthy: bool = True,
    ) -> None:
        """Begin to commit the state after `step`, and to drop what the retention lets go; without `background`, end it too.

        `progress` is what the loop goes on from besides tensors: JSON values by name, its "history" a list with a record
        per step. `average` holds averaged weights by parameter name. One that isn't `healthy` is no place to go back to.

        Raises: ArtifactError if the disk is full or read-only: of the save before, and without `background` of this one.
        """
        self.wait()
        temporary = self.folder / self.world.first(lambda: f".tmp-step-{step:08d}-{uuid.uuid4().hex[:8]}")  # which no other attempt knows
        state = _tensors(_state(model, optimizers, average))
        if self.background:
            state = cast("dict[str, Any]", self.stager.stage(state))  # a future only where staging is asynchronous
            progress = copy.deepcopy({**progress, "history": None}) | {"history": list(progress["history"])}
        self.writing = self.writer.submit(self._write, step, temporary, state, progress, healthy)
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """End the save that is being written, if there is one.

        Raises: what its `save` says.
        """
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        wait([writing])
        self.world.first(writing.result)
        writing.result()

    def close(self) -> None:
        """End the thread after what it is writing, whose failure no longer matters: training has failed before."""
        self.patience.end()
        self.writer.shutdown(wait=True)

    def _write(self, step: int, temporary: Path, state: dict[str, Any], progress: dict[str, Any], healthy: bool) -> None:
        """All shards, then on rank 0 the commit: the last collective of a save has told it that every shard is on disk."""
        with artifact.named_errors(self.folder):
            if self.world.rank == 0:
                self.patience.retry(lambda: self._sweep(temporary))
            hashes = self.patience.retry(lambda: _write_shards(state, temporary, self.group))
            if self.world.rank == 0:
                self.patience.retry(lambda: self._commit(step, temporary, progress, healthy, hashes))
                self.patience.retry(lambda: self._prune(progress["history"]))

    def _sweep(self, temporary: Path) -> None:
        """Remove whatever else lies unfinished, even what workers without a driver still write: the job's lock is ours."""
        for left in self.folder.glob(".tmp-*"):
            if left != temporary:
                shutil.rmtree(left, ignore_errors=True)

    def _commit(self, step: int, temporary: Path, progress: dict[str, Any], healthy: bool, hashes: Mapping[str, str]) -> None:
        """Make the checkpoint visible; called again, go on from wherever storage went away."""
        final = self.folder / f"step-{step:08d}"
        if final.exists() and not temporary.exists():
            artifact.fsync(self.folder)
            return
        write_history(temporary / HISTORY, progress["history"])
        (temporary / PROGRESS).write_text(json.dumps({**progress, "history": None}), encoding="utf-8")
        facts: dict[str, Any] = {"step": step, "seed": self.seed, "fingerprint": self.fingerprint, "workers": self.world.size}
        facts |= {"schema": SCHEMA, "stage": "checkpoint", "healthy": healthy}
        artifact.commit(temporary, final, facts | {"seal": _seal(facts)}, hashes, direct.HASH)

    def _prune(self, history: History) -> None:
        """Drop what the retention lets go."""
        found = self._found()
        for step in sorted(found.keys() - self.retention.stay(*_judged(found, history))):
            self._remove(found[step])

    def _remove_from(self, first: int) -> None:
        """The newest goes first: what a kill leaves ends the same stretch of steps, and is discarded by the next attempt."""
        for step, path in reversed(self._found().items()):
            if step >= first:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """A folder loses its name first: half of a checkpoint is never in sight."""
        gone = self.folder / f".tmp-{path.name}-{uuid.uuid4().hex[:8]}"
        failpoint("prune")
        path.rename(gone)
        failpoint("remove")
        shutil.rmtree(gone)

    def discard(self, first: int) -> None:
        """Drop every checkpoint of step `first` or later: a stop may have left one amid the steps that a run goes back from."""
        self.wait()
        with artifact.named_errors(self.folder):
            self.world.first(lambda: self._remove_from(first))

    def restore(
        self,
        model: nn.Module,
        optimizers: list[Optimizer],
        average: Mapping[str, Tensor] | None = None,
        *,
        best_of: History | None = None,
    ) -> dict[str, Any] | None:
        """Put the newest checkpoint that verifies, or the best one of a history, into model, optimizers and `average`.

        Its progress comes back; None without any.

        Raises: what `latest` and `best` do.
        """
        self.wait()
        path = self.world.first(self.latest if best_of is None else lambda: self.best(best_of))
        if path is None:
            return None
        state = _state(model, optimizers, average)
        with _no_advice():
            state_dict_loader.load(_tensors(state), checkpoint_id=path, no_dist=self.world.size == 1)
        set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=FLAT)
        return json.loads((path / PROGRESS).read_text(encoding="utf-8")) | {"history": read_history(path / HISTORY)}

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies; damaged ones on the way are renamed `.corrupt-…`.

        Raises: ArtifactError if it belongs to another job.
        """
        for path in reversed(self._found().values()):
            try:
                manifest = _verified(path)
            except ArtifactError:
                path.rename(path.with_name(f".corrupt-{path.name}-{time.time_ns()}"))
                continue
            if manifest["fingerprint"] != self.fingerprint:
                raise ArtifactError(
                    "checkpoint belongs to another job", value=path, remedy="delete this folder, or train in another work folder"
                )
            return path
        return None

    def best(self, history: History) -> Path | None:
        """The checkpoint with the best validation loss in this history; None where none was validated.

        Raises: ArtifactError if it is damaged, its manifest included: nobody asked for the second best.
        """
        found = self._found()
        step = best_step(*_judged(found, history))
        if step is None:
            return None
        try:
            _verified(found[step])
        except ArtifactError as error:
            remedy = f"delete {self.folder} and run the same command again: it trains anew"
            raise ArtifactError("the best checkpoint is damaged", value=found[step], remedy=remedy) from error
        return found[step]

    def _found(self) -> dict[int, Path]:
        """The committed ones by step, the oldest first."""
        return {int(path.name.removeprefix("step-")): path for path in sorted(self.folder.glob("step-*"))}


def _state(model: nn.Module, optimizers: list[Optimizer], average: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """The state of a training, under names that no number of workers changes; loading fills its tensors in place."""
    fresh = [optimizer for optimizer in optimizers if not optimizer.state]
    weights, moments = get_state_dict(model, optimizers, options=FLAT)
    for state in itertools.chain.from_iterable(optimizer.state.values() for optimizer in fresh):
        if "step" in state:
            state["step"].zero_()  # torch has made the moments by a step with zero gradients, and counted it
    return {"model": weights, "optimizer": moments} | ({"average": dict(average)} if average else {})


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings of parameter groups: the recipe says them, and torch would save each one per parameter."""
    moments = {name: value for name, value in state["optimizer"].items() if not name.startswith("param_groups.")}
    return {**state, "optimizer": moments}


def _stager(device: torch.device) -> DefaultStager:
    """What copies a state to memory of its own, the same memory every time: pinned where a GPU reads it."""
    gpu = device.type == "cuda"
    return DefaultStager(StagingOptions(use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu))


def _write_shards(state: dict[str, Any], folder: Path, group: dist.ProcessGroup | None) -> dict[str, str]:
    """Save the shards of every worker; their hashes by name. The first worker's failure is raised on all of them."""
    writing, files = direct.writer(folder)
    try:
        with _no_advice(), cast(Any, serialization).patch("save.compute_crc32", False):  # the manifest's hash says more
            state_dict_saver.save(state, storage_writer=writing, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        if not isinstance(cause, RuntimeError):
            raise cause from error
        remedy = "free space, or set TRAINYARD_HOME to a larger disk"  # torch may keep the system's own reason to itself
        raise ArtifactError("checkpoint can't be written", value=f"{folder} ({cause})", remedy=remedy) from error
    hashes = {path.name: digest for path, digest in files.hashes.items()}
    if group is None:
        return hashes
    everyone: list[dict[str, str]] = [{}] * group.size()
    dist.all_gather_object(everyone, hashes, group=group)
    return {name: digest for each in everyone for name, digest in each.items()}


def _verified(path: Path) -> dict[str, Any]:
    """The manifest of an undamaged checkpoint.

    Raises: ArtifactError if a file, or a byte of the manifest, isn't what was written.
    """
    manifest = artifact.verified_manifest(path, direct.HASH)
    text, intact = (path / "manifest.json").read_text(encoding="utf-8"), False
    with contextlib.suppress(ValueError):  # NaN, which we never write, has no seal
        intact = text == artifact.json_text(manifest) and manifest.get("seal") == _seal(manifest)
    if not intact:
        raise ArtifactError("manifest is damaged", value=path, remedy="run the same command again: an older checkpoint is taken")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    """sha256 of what a manifest says besides its files, which have their own."""
    return artifact.sha256_of({name: fact for name, fact in manifest.items() if name not in ("files", "digest", "seal")})


def _manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, unverified; nothing if it can't be read."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((path / "manifest.json").read_text())
    return {}


def _judged(found: Mapping[int, Path], history: History) -> tuple[dict[int, float | None], set[int]]:
    """By step, the validation losses of checkpoints, and which of these aren't healthy.

    The losses are the history's: a damaged manifest makes no checkpoint worse than it was.
    """
    losses = {record["step"]: _finite(record.get("validation_loss")) for record in history if record["step"] in found}
    return dict.fromkeys(found) | losses, {step for step, path in found.items() if not _manifest(path).get("healthy", True)}


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


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
