"""Memory that runs out halves the rows per pass and changes no loss; the limits are real ones of the system."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.errors import CapacityError
from llm.train import kernel_kills
from llm.train.micro_batch import fitting_size, is_out_of_memory, remember, within_memory
from llm.train.parallel.world import World
from tests.train.conftest import JobMaker

STARVED = Path(__file__).parent / "starved.py"
ALL_ROWS, RESTART, PLENTY = 32, 75, 0
ALONE = World(0, 1, torch.device("cpu"))


def attempt(work: Path, mebibytes: list[int]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of a group in which each worker has so much memory."""
    meeting = work / f"meeting-{len(list(work.glob('meeting-*')))}"
    command, size = [sys.executable, STARVED, work, meeting], str(len(mebibytes))
    processes = [
        subprocess.Popen([*command, str(rank), size, str(limit)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank, limit in enumerate(mebibytes)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def supervised(work: Path, mebibytes: list[int], attempts: int = 6) -> tuple[dict[str, Any], int]:
    """What the group ends with when it is started again after each attempt that may be healed, and the attempts needed."""
    for number in range(1, attempts + 1):
        members = attempt(work, mebibytes)
        if all(status == 0 for status, _, _ in members):
            return json.loads(members[0][1]), number
        assert RESTART in [status for status, _, _ in members], members
    raise AssertionError(members)


@pytest.fixture
def unlimited(tmp_path: Path) -> list[float]:
    (tmp_path / "unlimited").mkdir()
    result, _ = supervised(tmp_path / "unlimited", [PLENTY])
    assert result["rows"] == ALL_ROWS
    return result["losses"]


def test_one_worker_goes_on_at_once_with_the_same_losses(tmp_path: Path, unlimited: list[float]) -> None:
    result, attempts = supervised(tmp_path, [48])
    assert attempts == 1
    assert 1 <= result["rows"] < ALL_ROWS
    assert result["losses"] == pytest.approx(unlimited, rel=1e-6)
    assert fitting_size(tmp_path, ALL_ROWS) == result["rows"]


def test_a_group_starts_again_with_the_size_that_its_poorest_worker_left(tmp_path: Path, unlimited: list[float]) -> None:
    result, attempts = supervised(tmp_path, [PLENTY, 24])
    assert attempts > 1
    assert 1 <= result["rows"] == fitting_size(tmp_path, ALL_ROWS) < ALL_ROWS
    assert result["losses"] == pytest.approx(unlimited, rel=1e-6)


def test_one_row_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    def compute(size: int) -> None:
        torch.empty(2**50)

    with pytest.raises(CapacityError, match="one row.*DefaultCPUAllocator.*lower") as caught:
        within_memory(compute, 8, tmp_path, ALONE)
    assert not caught.value.transient
    assert fitting_size(tmp_path, 8) == 1


def test_what_the_kernel_ends_for_lack_of_memory_goes_on_with_half_the_rows(
    tmp_path: Path, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = tmp_path / "memory.events"
    monkeypatch.setattr(kernel_kills, "COUNTERS", (tmp_path / "not there", counter))
    job = make_job(micro_batch_size=4)
    job.work.mkdir()

    def attempt(kills: int, *, through: bool) -> int:
        counter.write_text(f"oom 9\noom_kill {kills}\noom_group_kill 9\n")
        with contextlib.suppress(ConnectionError), kernel_kills.heeded(job, ALONE):
            if not through:
                raise ConnectionError("another worker is gone")
        return fitting_size(job.work, job.train.micro_batch_size)

    assert attempt(3, through=False) == 4  # the first attempt
    assert attempt(3, through=False) == 4  # lost, but not to the kernel
    assert attempt(4, through=False) == 2
    assert attempt(6, through=False) == 1
    assert attempt(7, through=True) == 1  # there is nothing to halve
    (job.work / "micro_batch_size").unlink()
    assert attempt(9, through=True) == 4  # the attempt before ended well


def test_other_errors_pass_through(tmp_path: Path) -> None:
    def compute(size: int) -> None:
        torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="size"):
        within_memory(compute, 8, tmp_path, ALONE)
    assert fitting_size(tmp_path, 8) == 8


def test_what_allocators_raise_is_told_from_what_they_do_not() -> None:
    for fails in (lambda: torch.empty(2**50), lambda: np.zeros(2**50), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            fails()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_a_size_is_never_larger_than_the_recipe_asks(tmp_path: Path) -> None:
    remember(tmp_path, 16)
    assert fitting_size(tmp_path, 4) == 4
    assert fitting_size(tmp_path, 64) == 16
    assert fitting_size(tmp_path, 64, rows=6) == 6
