"""Kill a training again and again, at random steps and in the middle of commits, and compare what it ends with.

    python tests/drills/kills.py --kills 100 --with-ray 20

Most of the kills end one process of a plain group of two. The others meet Ray: a worker, the driver, and
Ray's head by turns. Each kill is a JSON line that says where it landed; the last line says PASS if weights and
history of both trainings are those of an undisturbed one, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import pickle
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from llm.model.config import DecoderConfig
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.job import TrainJob

TESTS = Path(__file__).parents[1]
PROCESS, DRIVER = TESTS / "train" / "stoppable.py", TESTS / "cluster" / "driver.py"
ROW_TOKENS, VOCAB_SIZE, CHECKPOINT_EVERY_STEPS = 32, 64, 10
STEPS_PER_KILL = 15
PATIENCE_SECONDS = 300.0
HEADLESS_SECONDS = 2.0  # workers train on without Ray's head: left alone, they would be done before the next kill


def main(kills: int, with_ray: int, seed: int) -> int:
    """Both trainings, the undisturbed one, and the verdict."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="trainyard-kills-") as name:
        folder = Path(name)
        job = make_job(folder, steps=STEPS_PER_KILL * max(kills - with_ray, with_ray) + 60)
        works = {kind: replace(job, work=folder / kind) for kind in ("undisturbed", "group", "ray")}
        group(works["undisturbed"], folder, [], chance)
        group(works["group"], folder, moments(job, kills - with_ray, chance), chance)
        through_ray(works["ray"], folder, moments(job, with_ray, chance), chance)
        same = {kind: equal(works["undisturbed"].work, works[kind].work) for kind in ("group", "ray")}
    print(json.dumps({"verdict": "PASS" if all(same.values()) else "FAIL", "identical": same}), flush=True)
    return 0 if all(same.values()) else 1


def make_job(folder: Path, steps: int) -> TrainJob:
    rows = folder / "rows"
    rows.mkdir()
    for seed, (split, count) in enumerate({"train": 128, "validation": 8}.items()):
        np.random.default_rng(seed).integers(3, VOCAB_SIZE, count * ROW_TOKENS + 1).astype("<u2").tofile(rows / f"{split}.tokens")
    facts = {"dtype": "uint16", "row_tokens": ROW_TOKENS, "vocab_size": VOCAB_SIZE, "splits": {"train": {}, "validation": {}}}
    (rows / "rows.json").write_text(json.dumps(facts))
    model = DecoderConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=64, max_positions=ROW_TOKENS)
    settings = {"steps": steps, "global_batch_size": 8, "micro_batch_size": 4, "schedule": {"warmup_steps": 2}, "precision": "fp32"}
    settings |= {"checkpoint_every_steps": CHECKPOINT_EVERY_STEPS, "validate_every_steps": 25}
    return TrainJob(rows, model, TrainConfig.model_validate(settings), 5, folder / "work", device="cpu")


def moments(job: TrainJob, count: int, chance: random.Random) -> list[int]:
    """Steps at which to kill, in order; half of them are steps with a checkpoint, so that commits are met as well."""
    last = job.train.steps - 5
    plain = chance.sample(range(2, last), count - count // 2)
    return sorted(plain + chance.sample(range(CHECKPOINT_EVERY_STEPS, last, CHECKPOINT_EVERY_STEPS), count // 2))


def group(job: TrainJob, folder: Path, moments: list[int], chance: random.Random) -> None:
    """Train in two plain processes; at each moment one of them is killed, and when both are gone they start again."""
    for number, moment in enumerate([*moments, None]):
        began, left, home = time.monotonic(), unfinished(job), folder / f"{job.work.name}-{number}"
        home.mkdir()
        (home / "job").write_bytes(pickle.dumps(job))
        with (folder / "log").open("a") as log:
            processes = [subprocess.Popen([sys.executable, PROCESS, home, str(rank), "2"], stderr=log) for rank in range(2)]
        if moment is None:
            assert [process.wait(timeout=PATIENCE_SECONDS) for process in processes] == [0, 0], (folder / "log").read_text()[-2000:]
            return
        reach(moment, job, processes, folder / "log", chance)
        chance.choice(processes).kill()
        note("group worker", job, began, left)
        for process in processes:
            end(psutil.Process(process.pid) if process.poll() is None else None)
            process.wait()


def through_ray(job: TrainJob, folder: Path, moments: list[int], chance: random.Random) -> None:
    """Train on two Ray workers; the moments meet a worker, which Ray replaces, the driver, and the head, by turns."""
    home, cluster = folder / "driver", ClusterConfig(workers=2, use_gpu=False, poll_seconds=0.2, max_recoveries=1000)
    home.mkdir()
    (home / "run").write_bytes(pickle.dumps((job, cluster)))
    driver = start_driver(home, folder)
    for moment, kind in zip(moments, itertools.cycle(("RayTrainWorker", "driver", "gcs_server")), strict=False):
        began, left = time.monotonic(), unfinished(job)
        reach(moment, job, [driver], folder / "log", chance)
        children = psutil.Process(driver.pid).children(recursive=True)
        victims = [psutil.Process(driver.pid)] if kind == "driver" else [child for child in children if kind in " ".join(command(child))]
        chance.choice(victims).kill()
        note(kind, job, began, left)
        if kind != "RayTrainWorker":
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=HEADLESS_SECONDS)
            for process in (psutil.Process(driver.pid) if driver.poll() is None else None, *children):
                end(process, patience_seconds=0)
            driver.wait()
            driver = start_driver(home, folder)
    assert driver.wait(timeout=PATIENCE_SECONDS) == 0, (folder / "log").read_text()[-2000:]


def start_driver(home: Path, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("a") as log:
        return subprocess.Popen([sys.executable, DRIVER, home], stdout=log, stderr=log)


def command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


def end(process: psutil.Process | None, patience_seconds: float = 20.0) -> None:
    """Wait for a process that has lost its partners, then end it."""
    if process is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            process.wait(timeout=patience_seconds)
        except psutil.TimeoutExpired:
            process.kill()


def reach(moment: int, job: TrainJob, processes: list[subprocess.Popen[bytes]], log: Path, chance: random.Random) -> None:
    """Return a random instant after a step from `moment` on was reported by the attempt at hand."""
    deadline, earlier = time.monotonic() + PATIENCE_SECONDS, len(reported(job.work))
    while max(reported(job.work)[earlier:], default=0) < moment:
        ended = [process.returncode for process in processes if process.poll() is not None]
        assert not ended, f"the training ended with {ended} before step {moment}; {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, "the kill's moment never came"
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.05))


def reported(work: Path) -> list[int]:
    """The steps that all attempts so far have reported, in order."""
    path = work / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def unfinished(job: TrainJob) -> set[str]:
    """Checkpoints that an attempt writes, or was writing when it was killed: the next save removes those."""
    return {path.name for path in (job.work / "checkpoints").glob(".tmp-step-*")}


def note(kind: str, job: TrainJob, began: float, left: set[str]) -> None:
    """One line: what was killed, and where that landed. An unfinished folder means amid a commit, if it isn't `left` of an earlier kill."""
    landed: dict[str, Any] = {
        "kill": kind,
        "step": reported(job.work)[-1],
        "phase": "commit" if unfinished(job) - left else "step",
        "checkpoints": sorted(int(path.name.removeprefix("step-")) for path in (job.work / "checkpoints").glob("step-*")),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(landed), flush=True)


def equal(wanted: Path, found: Path) -> bool:
    """Whether two trainings left the same bits."""
    return all(
        (wanted / "final" / name).read_bytes() == (found / "final" / name).read_bytes() for name in ("model.safetensors", "history.jsonl")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--with-ray", type=int, default=20, help="how many of them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(main(arguments.kills, arguments.with_ray, arguments.seed))
