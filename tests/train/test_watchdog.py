"""A worker that hangs is ended, with its stacks on disk, and the group can start again."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llm.train.config import ClusterConfig
from llm.train.loop import Attempt, watch
from llm.train.parallel.world import World
from llm.train.watchdog import Watchdog, last_hang
from tests.train.conftest import JobMaker

HANGING = Path(__file__).parent / "hanging.py"

Group = list[subprocess.Popen[str]]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """Processes that are gone after the test, stopped ones as well."""
    processes: Group = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(group: Group, folder: Path, first: int, how: str) -> Group:
    command = [sys.executable, HANGING, folder]
    members = [subprocess.Popen([*command, str(rank), str(first), how], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    group.extend(members)
    return members


def stacks(folder: Path, rank: int) -> str:
    return (folder / f"watchdog-{rank}.log").read_text()


def test_a_stopped_worker_ends_the_other_and_the_group_goes_on(tmp_path: Path, group: Group) -> None:
    waiting, stopped = start(group, tmp_path, 1, "stop")
    assert waiting.wait(timeout=40) == 1
    assert stopped.poll() is None
    report = stacks(tmp_path, 0)
    assert "step         5" in report.splitlines()[0]
    assert "Timeout" in report
    assert "all_reduce" in report
    assert last_hang(tmp_path) == ("worker 0 hung in step at step 5", tmp_path / "watchdog-0.log")
    stopped.kill()
    first = int((tmp_path / "done-0").read_text()) + 1
    assert first == 5
    assert [process.wait(timeout=40) for process in start(group, tmp_path, first, "not")] == [0, 0]
    assert [(tmp_path / f"done-{rank}").read_text() for rank in range(2)] == ["8", "8"]


def test_a_thread_that_never_lets_go_of_pythons_lock_is_ended(tmp_path: Path, group: Group) -> None:
    waiting, holding = start(group, tmp_path, 1, "lock")
    assert holding.wait(timeout=40) == 1
    assert waiting.wait(timeout=40) != 0
    assert "in hang" in stacks(tmp_path, 1)


def test_a_clean_end_leaves_no_file(tmp_path: Path) -> None:
    with Watchdog(tmp_path, rank=3, limit_seconds=45) as dog:
        dog.begin("step", 1)
        assert "worker 3" in stacks(tmp_path, 3)
        assert last_hang(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_report_stays(tmp_path: Path) -> None:
    (tmp_path / "watchdog-0.log").write_text("stacks of an earlier hang\n")
    with Watchdog(tmp_path, rank=0, limit_seconds=45) as dog:
        dog.begin("step", 1)
        assert stacks(tmp_path, 0).startswith("stacks of an earlier hang\nworker 0")
    assert stacks(tmp_path, 0) == "stacks of an earlier hang\n"


def test_the_limit_follows_what_is_usual(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, rank=0, limit_seconds=45)
    assert dog.limit("step") == 300
    dog.durations["step"].extend([1.0, 2.0, 300.0])
    assert dog.limit("step") == 45
    dog.durations["step"].extend([20.0, 20.0])
    assert dog.limit("step") == 200
    assert dog.limit("validation") == 300


def test_an_infinite_limit_ends_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path, rank=0, limit_seconds=math.inf, first_seconds=0.1) as dog:
        dog.begin("step", 1)
        assert dog.limit("step") == math.inf
        time.sleep(1.5)


def test_what_waits_for_a_disk_has_a_limit_of_its_own(make_job: JobMaker, tmp_path: Path) -> None:
    """To verify and load a checkpoint takes as long as to write one; to meet the other workers at the start doesn't."""
    job = replace(make_job(), work=tmp_path, cluster=ClusterConfig(write_timeout_seconds=1234))
    dog = watch(job, World.current("cpu"))
    assert [dog.limit(activity) for activity in ("load", "write", "result")] == [1234] * 3
    dog.limit_seconds = 45
    assert [dog.limit(activity) for activity in ("start", "rehearsal", "step", "validation")] == [300] * 4


def test_activities_of_an_attempt_are_told_apart(make_job: JobMaker) -> None:
    """What is usual of an activity is learnt from its own durations: of validation, one of each batch."""
    job = make_job(steps=4, validate_every_steps=2, validation_rows=6, micro_batch_size=2)
    job.work.mkdir(parents=True)
    with Watchdog(job.work, rank=0, limit_seconds=45) as dog:
        attempt = Attempt(job, World.current("cpu"), dog)
        attempt.run()
        attempt.close()
    assert {activity: len(durations) for activity, durations in dog.durations.items() if activity in ("start", "load", "validation")} == {
        "start": 1,
        "load": 1,
        "validation": 2 * 3,
    }


def test_a_limit_of_its_own_holds_whatever_is_usual(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, rank=0, limit_seconds=45, limits={"write": 7})
    dog.durations["write"].extend([100.0, 100.0])
    assert dog.limit("write") == 7
    assert dog.limit("step") == 300
