"""Checkpoints: damaged ones are passed over, old ones dropped, and one group at a time writes."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver

from llm.errors import ArtifactError
from llm.train.checkpoint import _write, sole_writer
from llm.train.loop import TrainJob, train
from llm.train.parallel.world import World

JobMaker = Callable[..., TrainJob]


def checkpoints(job: TrainJob) -> list[str]:
    return sorted(path.name for path in (job.work / "checkpoints").iterdir())


def test_the_newest_two_are_kept(make_job: JobMaker) -> None:
    job = make_job(checkpoint_every_steps=2)
    train(job)
    assert checkpoints(job) == ["step-00000010", "step-00000012"]


def test_the_manifest_says_what_it_belongs_to(make_job: JobMaker) -> None:
    job = make_job()
    train(job)
    manifest = json.loads((job.work / "checkpoints" / "step-00000012" / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert manifest["fingerprint"] == job.fingerprint
    assert {"history.jsonl", ".metadata"} < set(manifest["files"])


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

    def late(state: Any, *, checkpoint_id: Path, no_dist: bool) -> None:
        for earlier in written:
            earlier.mkdir(exist_ok=True)
            (earlier / "__1_0.distcp").write_bytes(b"late")
        written.append(checkpoint_id)
        save(state, checkpoint_id=checkpoint_id, no_dist=no_dist)

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


def test_a_second_group_waits_then_gives_up(tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    with sole_writer(tmp_path, world):
        with pytest.raises(ArtifactError, match="another run is training here"), sole_writer(tmp_path, world, timeout_seconds=0.3):
            pass
    with sole_writer(tmp_path, world, timeout_seconds=0.3):
        pass


def test_a_work_folder_that_cannot_be_made_is_named(make_job: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtifactError, match="TRAINYARD_HOME"):
        train(make_job("file/work"))


def test_a_disk_that_ends_in_the_middle_of_a_tensor_is_named(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        with pytest.raises(ArtifactError, match=r"(?s)checkpoint can't be written.*free space"):
            _write({"weight": torch.zeros(100_000)}, tmp_path / "step", World(0, 1, torch.device("cpu")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
