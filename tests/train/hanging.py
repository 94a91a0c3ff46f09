"""One of two processes that train, until something in it hangs: hanging.py FOLDER RANK FIRST HOW, FIRST is the first step."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from llm.train.watchdog import Watchdog

STEPS = 8


def hang(how: str) -> None:
    """`stop` stops this process; `lock` sleeps with Python's lock held."""
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "lock":
        ctypes.PyDLL(None).sleep(600)


def main(folder: Path, rank: int, first: int, how: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{first}", rank=rank, world_size=2)
    done = folder / f"done-{rank}"
    with Watchdog(folder, rank, limit_seconds=2.0, first_seconds=20.0) as dog:
        for step in range(first, STEPS + 1):
            dog.begin("step", step)
            if rank == 1 and step == 5:
                hang(how)
            dist.all_reduce(torch.ones(1))
            done.write_text(str(step))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
