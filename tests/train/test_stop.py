"""A training that is asked to stop ends after the step at hand with its checkpoint: no step is lost, none done twice."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm.errors import StoppedError
from llm.train.budget import Spent
from llm.train.config import ClusterConfig
from llm.train.job import TrainJob
from llm.train.loop import train
from llm.train.parallel.world import World
from llm.train.stop import StopRequests, on_sigterm, request

JobMaker = Callable[..., TrainJob]
PROCESS = Path(__file__).parent / "stoppable.py"
STEPS = 60


def steps(work: Path) -> list[int]:
    path = work / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines() if line] if path.exists() else []


def start(job: TrainJob, size: int, folder: Path) -> list[subprocess.Popen[str]]:
    """A group of processes that each call `train(job)`."""
    folder.mkdir(exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    (folder / "job").write_bytes(pickle.dumps(job))
    return [
        subprocess.Popen([sys.executable, PROCESS, folder, str(rank), str(size)], stderr=subprocess.PIPE, text=True) for rank in range(size)
    ]


def after(step: int, work: Path, deadline_seconds: float = 90.0) -> None:
    """Return once that step is reported."""
    deadline = time.monotonic() + deadline_seconds
    while not any(done >= step for done in steps(work)):
        assert time.monotonic() < deadline, "the step never came"
        time.sleep(0.002)


@pytest.mark.parametrize("size", [1, 2])
def test_sigterm_loses_no_step(make_job: JobMaker, tmp_path: Path, size: int) -> None:
    """The signal reaches one process only, and not the one that writes the manifest."""
    job = make_job(steps=STEPS, checkpoint_every_steps=STEPS)
    group = start(job, size, tmp_path / "group")
    after(5, job.work)
    group[-1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=60)[1] for process in group]
    last = steps(job.work)[-1]
    assert last < STEPS
    for process, text in zip(group, errors, strict=True):
        assert process.returncode == 1
        assert f"StoppedError: training stopped after step {last}: SIGTERM; the same command continues" in text
    for process in start(job, size, tmp_path / "group"):
        assert process.wait(timeout=90) == 0
    assert steps(job.work) == list(range(1, STEPS + 1))
    if size == 1:
        undisturbed = make_job("undisturbed", steps=STEPS, checkpoint_every_steps=STEPS)
        train(undisturbed)
        for name in ("model.safetensors", "history.jsonl"):
            assert (job.work / "final" / name).read_bytes() == (undisturbed.work / "final" / name).read_bytes()


def test_the_number_of_workers_may_change_between_attempts(make_job: JobMaker, tmp_path: Path) -> None:
    """1 → 2 → 3 → 1 workers: every step once, and its loss is that of one worker all along, so no row is skipped or repeated."""
    changes: dict[str, object] = {"steps": 40, "checkpoint_every_steps": 40, "optimizer": {"kind": "adamw", "adamw_learning_rate": 3e-3}}
    job, alone = make_job(**changes), make_job("alone", **changes)
    for size, last in ((1, 5), (2, 12), (3, 19)):
        group = start(job, size, tmp_path / f"group-{size}")
        after(last, job.work)
        request(job.work, "other machines")
        assert [process.wait(timeout=90) for process in group] == [1] * size
    train(job)
    train(alone)
    assert steps(job.work) == list(range(1, 41))
    found, wanted = ([json.loads(line) for line in (each.work / "final" / "history.jsonl").open()] for each in (job, alone))
    assert [record["tokens"] for record in found] == [record["tokens"] for record in wanted]
    assert [record["loss"] for record in found] == pytest.approx([record["loss"] for record in wanted], rel=1e-5)


def test_a_file_stops_it_and_the_next_attempt_goes_on(make_job: JobMaker) -> None:
    job = make_job(steps=STEPS)
    asker = threading.Thread(target=lambda: (after(5, job.work), request(job.work, "the machine is wanted back")))
    asker.start()
    with pytest.raises(StoppedError, match="the machine is wanted back; the same command continues"):
        train(job)
    asker.join()
    train(job)
    assert steps(job.work) == list(range(1, STEPS + 1))


def test_what_a_killed_attempt_cost_is_not_forgotten(make_job: JobMaker, tmp_path: Path) -> None:
    """No step of it reached a checkpoint, and its last record is torn."""
    job = make_job(steps=STEPS, checkpoint_every_steps=STEPS)
    (process,) = start(job, 1, tmp_path / "group")
    after(5, job.work)
    process.kill()
    process.communicate()
    records = job.work / "metrics.jsonl"
    lines = records.read_text().splitlines()
    records.write_text("\n".join([*lines, lines[-1][:20]]) + "\n")
    spent = Spent.recorded(records)
    assert spent.seconds == pytest.approx(sum(json.loads(line)["step_seconds"] for line in lines))
    within = replace(job, cluster=ClusterConfig.model_validate({"budget": {"hours": spent.seconds / 3600}}))
    with pytest.raises(StoppedError, match=r"after step 1: spent .* of cluster\.budget\.hours"):
        train(within)
    train(job)
    cost = json.loads((job.work / "final" / "log" / "cost.json").read_text())
    both = Spent.recorded(records)
    assert (cost["seconds"], cost["energy_kwh"]) == (round(both.seconds, 3), round(both.kwh, 9))
    assert both.seconds > spent.seconds


def test_a_start_is_paid_but_is_no_training(make_job: JobMaker) -> None:
    job = make_job()
    train(job)
    first, *others = (json.loads(line) for line in (job.work / "metrics.jsonl").read_text().splitlines())
    assert 0 < first["start_share"] < 1
    assert not any("start_share" in record for record in others)
    assert first["tokens_per_second"] > 8 * job.model.max_positions / first["step_seconds"]


def test_the_first_reason_is_told(tmp_path: Path) -> None:
    stops = StopRequests(tmp_path, World(0, 1, torch.device("cpu")))
    assert not stops.agreed()
    stops.ask("budget of 2 h is spent")
    request(tmp_path, "later")
    assert stops.agreed()
    assert str(stops.error(7)) == "training stopped after step 7: budget of 2 h is spent; the same command continues from there"
    assert not (tmp_path / ".stop").exists()


def test_a_reason_that_yields_takes_no_others_place(tmp_path: Path) -> None:
    stops = StopRequests(tmp_path, World(0, 1, torch.device("cpu")))
    (tmp_path / ".stop").touch()
    assert not stops.agreed(), "whoever made the file is about to write it"
    (tmp_path / ".stop").unlink()
    request(tmp_path, "the machine is taken back", yields=True)
    assert stops.agreed()
    request(tmp_path, "SIGTERM")
    request(tmp_path, "another machine is taken back", yields=True)
    assert stops.error(7).value == "SIGTERM"
    assert not list(tmp_path.iterdir())


def test_a_stop_is_not_tried_again() -> None:
    assert not StoppedError("stopped").transient


def test_the_second_sigterm_does_what_it_always_did() -> None:
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("always"))
    try:
        with on_sigterm(lambda: seen.append("ask")):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["ask", "always", "always"]
