"""What happens to the process that drives Ray workers happens to the training: a SIGTERM stops it without losing a step."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.train.config import ClusterConfig
from llm.train.job import TrainJob

DRIVER = Path(__file__).parent / "driver.py"


def drive(job: TrainJob, cluster: ClusterConfig, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "run").write_bytes(pickle.dumps((job, cluster)))
    return subprocess.Popen([sys.executable, DRIVER, folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_sigterm_to_the_driver_loses_no_step(
    make_job: Callable[..., TrainJob],
    steps: Callable[[Path], list[int]],
    after: Callable[[int, Path], None],
    two_workers: ClusterConfig,
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path / "work", steps=400, checkpoint_every_steps=400)
    driver = drive(job, two_workers, tmp_path / "driver")
    after(15, job.work)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=120)
    last = steps(job.work)[-1]
    assert driver.returncode == 1
    assert f"StoppedError: training stopped after step {last}: SIGTERM; the same command continues" in errors
    driver = drive(job, two_workers, tmp_path / "driver")
    after(last + 1, job.work)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=120)
    done = steps(job.work)
    assert done == list(range(1, len(done) + 1))
