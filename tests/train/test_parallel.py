"""A group of workers that fails together, whatever fails on the first."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llm.errors import DataError
from llm.train.parallel.world import World


class UnknownError(Exception):
    """Can't be pickled by its name, like the errors of some compiled libraries."""

    def __reduce__(self) -> Any:
        raise TypeError("can't pickle this")


FAILURES = {"ours": (DataError("no text", value=0, remedy="add text"), DataError), "unknown": (UnknownError("x"), RuntimeError)}


def worker(rank: int, meeting: Path, failure: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    own, elsewhere = FAILURES[failure]

    def fail() -> None:
        raise own

    with pytest.raises(elsewhere if rank else type(own)):
        World(rank, 2, torch.device("cpu")).first(fail)


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_on_the_first_fails_on_all(tmp_path: Path, failure: str) -> None:
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=worker, args=(rank, tmp_path / "meeting", failure)) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(timeout=60)
        process.kill()
    assert [process.exitcode for process in workers] == [0, 0]
