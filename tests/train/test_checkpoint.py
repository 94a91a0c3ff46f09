"""Checkpoints: damaged ones are passed over, old ones dropped, and one group at a time writes."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, state_dict_saver

from llm import artifact, failpoint
from llm.artifact import Store
from llm.errors import ArtifactError
from llm.train import patience
from llm.train.adamw8bit import AdamW8bit
from llm.train.checkpoint import Checkpoints, _verified, _write_shards, sole_writer
from llm.train.job import TrainJob
from llm.train.loop import train
from llm.train.muon import Muon
from llm.train.parallel.world import World
from llm.train.retention import Retention

JobMaker = Callable[..., TrainJob]
SHARDED = Path(__file__).parent / "sharded.py"
ALONE = World(0, 1, torch.device("cpu"))


def checkpoints(job: TrainJob) -> list[str]:
    return sorted(path.name for path in (job.work / "checkpoints").iterdir())


def test_the_newest_two_are_kept(make_job: JobMaker) -> None:
    job = make_job(checkpoint_every_steps=2)
    train(job)
    assert checkpoints(job) == ["step-00000010", "step-00000012"]


@dataclass
class Tiny:
    """A layer, its optimizer and a running average, trained by steps that depend on nothing but the state."""

    layer: nn.Linear = field(default_factory=lambda: nn.Linear(8, 8))

    def __post_init__(self) -> None:
        self.optimizers = [torch.optim.AdamW([self.layer.weight]), torch.optim.SGD([self.layer.bias], momentum=0.9)]
        self.average = {name: value.detach().clone() for name, value in self.layer.named_parameters()}
        self.history: list[dict[str, Any]] = []

    def step(self, validation_loss: float | None = None) -> None:
        self.layer(torch.ones(2, 8)).square().sum().backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, value in self.layer.named_parameters():
            self.average[name].lerp_(value.detach(), 0.1)
        self.history.append({"step": len(self.history) + 1} | ({"validation_loss": validation_loss} if validation_loss else {}))

    def save(self, checkpoints: Checkpoints, *, healthy: bool = True) -> None:
        progress = {"history": self.history, "guard": {"seen": self.history[-2:]}}
        checkpoints.save(len(self.history), self.layer, self.optimizers, progress, self.average, healthy=healthy)

    def restore(self, checkpoints: Checkpoints) -> dict[str, Any] | None:
        return checkpoints.restore(self.layer, self.optimizers, self.average)

    def tensors(self) -> dict[str, torch.Tensor]:
        moments = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        flat = {f"{number}.{name}": value for number, state in enumerate(moments) for name, value in state.items()}
        return dict(self.layer.state_dict()) | {f"average.{name}": value for name, value in self.average.items()} | flat


def open_in(folder: Path, *, background: bool = False, patience_seconds: float = 0, **retention: Any) -> Checkpoints:
    return Checkpoints(folder, "fingerprint", 1, Retention(**retention), ALONE, background=background, patience_seconds=patience_seconds)


def test_a_background_save_holds_the_step_although_training_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny, beside, apart = Tiny(), open_in(tmp_path / "beside", background=True), open_in(tmp_path / "apart")
    for _ in range(3):  # the memory of the first copy is used again by the others
        tiny.step()
        tiny.save(beside)
        tiny.save(apart)
        wanted = {name: value.clone() for name, value in tiny.tensors().items()}
        for _ in range(20):
            tiny.step()
        assert beside.writing is not None
        found, same = Tiny(), Tiny()
        assert found.restore(beside) == same.restore(apart)
        assert set(found.tensors()) == set(wanted)
        for name, value in wanted.items():
            assert torch.equal(found.tensors()[name], value), name
            assert torch.equal(same.tensors()[name], value), name


def test_progress_returns_as_it_was_saved(tmp_path: Path) -> None:
    tiny, checkpoints = Tiny(), open_in(tmp_path, background=True)
    assert tiny.restore(checkpoints) is None
    tiny.step(validation_loss=0.1 + 0.2)
    tiny.save(checkpoints)
    tiny.step()
    record = {"step": 1, "validation_loss": 0.1 + 0.2}
    assert Tiny().restore(checkpoints) == {"history": [record], "guard": {"seen": [record]}}


def test_a_background_failure_arrives_with_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, checkpoints = Tiny(), open_in(tmp_path, background=True)
    tiny.step()
    tiny.save(checkpoints)
    checkpoints.wait()
    monkeypatch.setenv("TRAINYARD_FAILPOINT", "commit:raise:1")
    tiny.step()
    tiny.save(checkpoints)
    with pytest.raises(ArtifactError, match="free space"):
        tiny.save(checkpoints)
    progress = tiny.restore(checkpoints)
    assert progress is not None
    assert len(progress["history"]) == 1


def test_storage_that_comes_back_gets_the_checkpoint(tmp_path: Path) -> None:
    store, away = tmp_path / "store", tmp_path / "away"
    tiny, checkpoints = Tiny(), open_in(store, background=True, patience_seconds=30)
    store.rename(away)
    tiny.step()
    tiny.save(checkpoints)
    writing, wanted = checkpoints.writing, {name: value.clone() for name, value in tiny.tensors().items()}
    tiny.step()
    assert writing is not None
    with pytest.raises(TimeoutError):
        writing.result(0.7)
    away.rename(store)
    tiny.save(checkpoints)
    assert writing.done(), "training waits for the save before, and loses none"
    checkpoints.wait()
    shutil.rmtree(store / "step-00000002")
    found = Tiny()
    assert found.restore(checkpoints) is not None
    for name, value in wanted.items():
        assert torch.equal(found.tensors()[name], value), name


def test_storage_that_stays_away_ends_the_training(tmp_path: Path) -> None:
    store = tmp_path / "store"
    tiny, checkpoints = Tiny(), open_in(store, patience_seconds=0.5)
    store.rename(tmp_path / "away")
    tiny.step()
    with pytest.raises(FileNotFoundError):
        tiny.save(checkpoints)
    assert not store.exists()


CALLS = ((os, "mkdir"), (os, "rename"), (os, "open"), (os, "scandir"), (os, "stat"), (io, "open"))  # what a save asks the system for


def test_storage_may_go_away_before_any_call_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)
    store, away = tmp_path / "store", tmp_path / "away"
    tiny, checkpoints = Tiny(), open_in(store, background=True, patience_seconds=30)
    until = [0]  # calls of the writer until the next outage
    outages: list[threading.Timer] = []

    def call(ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith("checkpoint"):
            until[0] -= 1
            if until[0] == 0:
                store.rename(away)
                outages.append(threading.Timer(0.02, away.rename, (store,)))
                outages[-1].start()
        return ask(*arguments, **options)

    for module, name in CALLS:
        monkeypatch.setattr(module, name, functools.partial(call, getattr(module, name)))
    for calls in itertools.count(1):
        for until[0] in (calls, 0):  # an outage, then none
            tiny.step()
            tiny.save(checkpoints)
            checkpoints.wait()
        if len(outages) < calls:
            break
        assert not away.exists(), f"something was made in its place by call {calls}"
        assert sorted(path.name for path in store.glob("[!.]*")) == [f"step-{step:08d}" for step in (2 * calls - 1, 2 * calls)]
        assert [_verified(path)["step"] for path in sorted(store.glob("step-*"))] == [2 * calls - 1, 2 * calls]
    assert calls > 30


def test_nobody_waits_for_a_training_that_has_failed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    tiny, checkpoints = Tiny(), open_in(store, background=True, patience_seconds=3_600)
    store.rename(tmp_path / "away")
    tiny.step()
    tiny.save(checkpoints)
    checkpoints.close()
    with pytest.raises(FileNotFoundError):
        checkpoints.wait()


def test_marked_and_best_checkpoints_stay(tmp_path: Path) -> None:
    tiny, checkpoints = Tiny(), open_in(tmp_path, last=2, every_steps=4, best=True)
    for loss in (3.0, 1.0, float("nan"), 2.0, 2.5, 2.4, 2.3, None, 2.2, 2.1):
        tiny.step(loss)
        tiny.save(checkpoints)
    assert [int(name.removeprefix("step-")) for name in sorted(path.name for path in tmp_path.iterdir())] == [2, 4, 8, 9, 10]


def test_an_unhealthy_one_stays_while_it_is_the_newest_and_displaces_none(tmp_path: Path) -> None:
    tiny, checkpoints = Tiny(), open_in(tmp_path, last=2, best=True)
    for step, left in enumerate(([1], [1, 2], [1, 2, 3], [1, 2, 4], [2, 5]), start=1):
        tiny.step(validation_loss=float(10 - step))
        tiny.save(checkpoints, healthy=step not in (3, 4))
        assert [int(path.name.removeprefix("step-")) for path in sorted(tmp_path.iterdir())] == left


def test_discarded_ones_are_gone_and_the_one_before_is_taken(tmp_path: Path) -> None:
    tiny, checkpoints = Tiny(), open_in(tmp_path, last=9, background=True)
    for step in range(1, 5):
        tiny.step()
        tiny.save(checkpoints, healthy=step < 3)
    checkpoints.discard(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert len((tiny.restore(checkpoints) or {})["history"]) == 2


def optimizers(layer: nn.Linear) -> dict[str, list[torch.optim.Optimizer]]:
    return {
        "adamw": [torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)],
        "adamw8bit": [AdamW8bit(layer.parameters(), lr=0.1, betas=(0.9, 0.95), eps=1e-8)],
        "muon": [Muon([layer.weight], lr=0.1, momentum=0.9, weight_decay=0.1), torch.optim.AdamW([layer.bias], lr=0.1)],
    }


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "muon"])
def test_a_save_before_the_first_applied_step_changes_none_after_it(tmp_path: Path, kind: str) -> None:
    """As where every step so far was skipped; a run that is restored from it goes the same way."""
    ends = []
    for saves in ("none", "before", "restored"):
        torch.manual_seed(0)
        tiny, checkpoints = Tiny(), open_in(tmp_path)
        tiny.optimizers = optimizers(tiny.layer)[kind]
        if saves == "before":
            tiny.save(checkpoints)
        if saves == "restored":
            assert tiny.restore(checkpoints) is not None
        for _ in range(3):
            tiny.step()
        ends.append(tiny.layer.weight.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_settings_stay_those_of_the_recipe(tmp_path: Path) -> None:
    tiny, again = Tiny(), Tiny()
    tiny.step()
    tiny.save(open_in(tmp_path))
    group = again.optimizers[0].param_groups[0]
    group["lr"], group["weight_decay"] = 0.5, 0.25
    assert again.restore(open_in(tmp_path)) is not None
    group = again.optimizers[0].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert torch.equal(again.layer.weight, tiny.layer.weight)
    saved = FileSystemReader(tmp_path / "step-00000001").read_metadata().state_dict_metadata
    assert saved
    assert not [name for name in saved if "param_groups" in name]


def test_shards_come_back_on_any_number_of_workers(tmp_path: Path) -> None:
    """1 → 2 → 3 → 1 workers that hold shards of parameters, moments and average: each loads to the bit what the one before saved."""
    seen = []
    for step, size in enumerate((1, 2, 3, 1), start=1):
        group = [subprocess.Popen([sys.executable, SHARDED, tmp_path, str(rank), str(size)]) for rank in range(size)]
        assert [process.wait(timeout=200) for process in group] == [0] * size
        seen.append(torch.load(tmp_path / f"seen-{step}"))
    for before, after in itertools.pairwise(seen):
        assert len(before["saved"]) == len(after["loaded"])
        assert all(torch.equal(saved, loaded) for saved, loaded in zip(before["saved"], after["loaded"], strict=True))
    alone = tmp_path / "alone"
    alone.mkdir()
    for step, wanted in enumerate(seen, start=1):
        subprocess.run([sys.executable, SHARDED, alone, "0", "1"], check=True, timeout=200)
        assert wanted["loss"] == pytest.approx(torch.load(alone / f"seen-{step}")["loss"], rel=1e-6)


def test_the_manifest_says_what_it_belongs_to(make_job: JobMaker) -> None:
    job = make_job()
    train(job)
    manifest = json.loads((job.work / "checkpoints" / "step-00000012" / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert manifest["fingerprint"] == job.fingerprint
    assert {"history.jsonl", ".metadata"} < set(manifest["files"])
    assert all(set(facts) == {"bytes", "xxh3_128"} for facts in manifest["files"].values())


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_one_is_set_aside_and_the_one_before_taken(make_job: JobMaker, damage: str) -> None:
    job = make_job(checkpoint_every_steps=4)
    train(job)
    whole = (job.work / "final" / "model.safetensors").read_bytes()
    newest = job.work / "checkpoints" / "step-00000012"
    spoil(newest / "manifest.json" if damage == "manifest" else next(newest.glob("*.distcp")), damage)
    train(job)
    assert (job.work / "final" / "model.safetensors").read_bytes() == whole
    steps = [json.loads(line)["step"] for line in (job.work / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 13), *range(9, 13)]
    assert any(name.startswith(".corrupt-step-00000012") for name in checkpoints(job))


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def mutate(checkpoint: Path, older: Path, chance: random.Random) -> str:
    """Damage one file of a checkpoint in one of the ways that disks and people have; what was done, in words."""
    files = [*sorted(path for path in checkpoint.iterdir() if path.name != "manifest.json"), checkpoint / "manifest.json"]
    path, kind = chance.choice(files), chance.choice(("truncate", "flip", "remove", "older", "swap", "grow"))
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if kind == "truncate":
        path.write_bytes(content[:place])
    elif kind == "flip":
        content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif kind == "remove":
        path.unlink()
    elif kind == "older":
        path.write_bytes((older / next(older.glob(f"*{path.suffix or path.name}")).name).read_bytes())
    elif kind == "swap":
        other = chance.choice([each for each in files if each != path])
        other_content = other.read_bytes()
        other.write_bytes(content)
        path.write_bytes(other_content)
    else:
        path.write_bytes(content + chance.randbytes(1 + place) + b"x")
    return f"{kind} of {path.name} at {place}"


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_every_mutation_is_detected(tmp_path: Path, count: int) -> None:
    tiny, checkpoints, chance = Tiny(), open_in(tmp_path / "whole"), random.Random(count)
    for loss in (2.0, 1.0):
        tiny.step(validation_loss=loss)
        tiny.save(checkpoints)
    found = open_in(tmp_path / "damaged")
    for _ in range(count):
        shutil.copytree(tmp_path / "whole", found.folder, dirs_exist_ok=True)
        done = mutate(found.folder / "step-00000002", found.folder / "step-00000001", chance)
        assert found.latest() == found.folder / "step-00000001", done
        assert not (found.folder / "step-00000002").exists()
        shutil.rmtree(found.folder)


@pytest.mark.parametrize("name", ["step", "seed", "fingerprint", "workers", "validation_loss", "healthy", "schema"])
def test_an_edited_manifest_is_detected(tmp_path: Path, name: str) -> None:
    tiny, checkpoints = Tiny(), open_in(tmp_path)
    tiny.step()
    tiny.save(checkpoints)
    path = tmp_path / "step-00000001" / "manifest.json"
    artifact.write_json(path, json.loads(path.read_text()) | {name: 7})
    assert checkpoints.latest() is None


@pytest.mark.parametrize(("said", "instead"), [("}\n", "}"), ('"step": 1', '"step": NaN')])
def test_a_manifest_of_other_bytes_is_detected(said: str, instead: str, tmp_path: Path) -> None:
    tiny, checkpoints = Tiny(), open_in(tmp_path)
    tiny.step()
    tiny.save(checkpoints)
    path = tmp_path / "step-00000001" / "manifest.json"
    text = path.read_text()
    assert said in text
    path.write_text(text.replace(said, instead))
    assert checkpoints.latest() is None


# --- a process that ends at any instant of a save ---

Attempt = Callable[[Path], None]


def three_saves(folder: Path) -> None:
    """What is left of three steps with a save after each, then the state in `folder/end`."""
    torch.manual_seed(0)
    tiny, checkpoints = Tiny(), open_in(folder, background=True)
    tiny.history = (tiny.restore(checkpoints) or {"history": []})["history"]
    while len(tiny.history) < 3:
        tiny.step()
        tiny.save(checkpoints)
    checkpoints.wait()
    checkpoints.close()
    tensors = {name: value.tolist() for name, value in tiny.tensors().items()}
    (folder / "end").write_text(json.dumps([tensors, tiny.history], sort_keys=True))


def in_child(attempt: Attempt, folder: Path, place: str) -> tuple[int, Counter[str]]:
    """Make the attempt in a forked process that a place ends: its status, and how often it passed each place.

    Places are our failpoints, and "system": every file opened, made, renamed or removed in the folder, by whomever.
    """
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        seen = folder.with_suffix(".seen")
        return os.waitstatus_to_exitcode(status), Counter(json.loads(seen.read_text())) if seen.exists() else Counter()
    os.environ["TRAINYARD_FAILPOINT"] = place
    failpoint._passed.clear()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(arguments[0]).startswith(f"{folder}/"):
            failpoint.failpoint("system")

    sys.addaudithook(hook)
    try:
        attempt(folder)
        folder.with_suffix(".seen").write_text(json.dumps(failpoint._passed))
        os._exit(0)
    finally:
        os._exit(1)


def assert_survived(attempt: Attempt, folder: Path, whole: Path, place: str) -> None:
    """What is in sight verifies, and another attempt ends as if nothing had happened."""
    committed = sorted(folder.glob("**/step-*"))
    for path in committed:
        _verified(path)
    status, _ = in_child(attempt, folder, "")
    assert status == 0, place
    assert (folder / "end").read_bytes() == (whole / "end").read_bytes(), place
    assert not list(folder.glob("**/.corrupt-*")), place


def sweep(attempt: Attempt, tmp_path: Path, every: int) -> Counter[str]:
    """Kill the attempt at each `every`th place that it passes, and look at what is left; the number of kills by place."""
    whole = tmp_path / "whole"
    whole.mkdir()
    status, passed = in_child(attempt, whole, "nowhere:kill:1")
    assert status == 0
    killed: Counter[str] = Counter()
    for name, times in sorted(passed.items()):
        for nth in range(times, 0, -every):
            folder, place = tmp_path / f"{name}-{nth}", f"{name}:kill:{nth}"
            folder.mkdir()
            status, _ = in_child(attempt, folder, place)
            assert status == -signal.SIGKILL, place
            assert_survived(attempt, folder, whole, place)
            killed[name] += 1
    return killed


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.long)])
def test_a_kill_at_any_instant_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, every: int) -> None:
    killed = sweep(three_saves, tmp_path, every)
    assert {"fsync", "replace", "commit", "prune", "remove", "system"} == set(killed)


def test_an_unfinished_one_is_not_read_and_swept(make_job: JobMaker) -> None:
    job = make_job()
    unfinished = job.work / "checkpoints" / ".tmp-step-00000003-dead"
    unfinished.mkdir(parents=True)
    (unfinished / "__0_0.distcp").write_bytes(b"half")
    train(job)
    assert checkpoints(job) == ["step-00000008", "step-00000012"]


def test_no_two_attempts_write_into_one_folder(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that outlived its driver may write its share of a step late, while the next attempt writes the same step."""
    written: list[Path] = []
    save = state_dict_saver.save

    def late(state: Any, *, storage_writer: FileSystemWriter, process_group: None, no_dist: bool) -> None:
        for earlier in written:
            earlier.mkdir(exist_ok=True)
            (earlier / "__1_0.distcp").write_bytes(b"late")
        written.append(Path(storage_writer.checkpoint_id))
        save(state, storage_writer=storage_writer, process_group=process_group, no_dist=no_dist)

    monkeypatch.setattr(state_dict_saver, "save", late)
    job = make_job()
    for _ in range(2):
        train(job)
        for step in (job.work / "checkpoints").glob("step-*"):
            assert not (step / "__1_0.distcp").exists()
            shutil.rmtree(step)
    assert len(set(written)) == len(written) == 6


@pytest.mark.parametrize("name", ["rows.json", "train.tokens", "train.mask"])
def test_other_rows_are_another_job(masked_rows: Path, make_job: JobMaker, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(masked_rows, tmp_path / "rows")
    before = make_job(rows=copy).fingerprint
    assert before == make_job(rows=masked_rows).fingerprint
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    assert make_job(rows=copy).fingerprint != before


def test_rows_of_an_artifact_are_told_by_its_manifest(masked_rows: Path, make_job: JobMaker, tmp_path: Path) -> None:
    """A checkpoint made before the rows had a manifest still fits, and no row is read to see that."""

    def build(out: Path) -> dict[str, Any]:
        shutil.copytree(masked_rows, out, dirs_exist_ok=True)
        return {}

    path = Store(tmp_path).produce("tokenize", "key", {}, build).path
    assert make_job(rows=path).fingerprint == make_job(rows=masked_rows).fingerprint
    (path / "train.tokens").unlink()
    (path / "train.tokens").mkdir()  # which can't be read
    assert make_job(rows=path).fingerprint == make_job(rows=masked_rows).fingerprint


def test_a_second_group_waits_then_gives_up(tmp_path: Path) -> None:
    world = ALONE
    with sole_writer(tmp_path, world):
        with pytest.raises(ArtifactError, match="another run is training here"), sole_writer(tmp_path, world, timeout_seconds=0.3):
            pass
    with sole_writer(tmp_path, world, timeout_seconds=0.3):
        pass


def test_a_work_folder_that_cannot_be_made_is_named(make_job: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtifactError, match="TRAINYARD_HOME"):
        train(make_job("file/work"))


@pytest.mark.parametrize("numbers", [100_000, 10_000_000])  # less than a block of llm/train/direct.py, and several
def test_a_disk_that_ends_in_the_middle_of_a_tensor_is_the_error(tmp_path: Path, numbers: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            _write_shards({"weight": torch.zeros(numbers)}, tmp_path / "step", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
