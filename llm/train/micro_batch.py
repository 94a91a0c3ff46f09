"""How many rows a worker passes through the model at once: as many as the recipe says, or half of that as often as memory ran out.

The rows of a step, their order and the mean over them stay the same; only the additions happen in another order. A worker
that runs out of memory alone would leave the others in a collective, so a group starts again from its checkpoint: the
smaller size lies in the work folder, where every worker of the next attempt finds it.

What the kernel's own killer ends leaves no error; llm/train/kernel_kills.py finds it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from llm.errors import CapacityError
from llm.train.parallel.world import World

T = TypeVar("T")

FILE = "micro_batch_size"
SIGNS = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")  # in a RuntimeError's text


def fitting_size(work: Path, asked: int, rows: int | None = None) -> int:
    """Rows per pass for this attempt: `asked`, or what an earlier attempt found to fit, but none beyond the `rows` of a worker's step.

    Half of a size that no pass reaches would be tried in vain.
    """
    path = work / FILE
    return min(asked, rows or asked, int(path.read_text()) if path.exists() else asked)


def within_memory(compute: Callable[[int], T], size: int, work: Path, world: World) -> tuple[T, int]:
    """`compute(size)`, with half the rows per pass whenever memory runs out; the result, and the size that fitted.

    `compute` is called again from its beginning, and must drop what it left unfinished.

    Raises: CapacityError if one row doesn't fit, and, transient, in a group of workers whenever memory ran out.
    """
    while True:
        try:
            return compute(size), size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = (str(error) or type(error).__name__).splitlines()[0]
        size = halved(size, message)  # outside of `except`, where the error no longer holds the tensors of its frames
        remember(work, size)
        if world.size > 1:
            raise CapacityError("memory ran out", value=message, remedy=f"the next attempt passes {size} rows at once", transient=True)
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may heal this error."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in SIGNS)


def halved(size: int, message: str) -> int:
    """Raises: CapacityError if there is nothing to halve."""
    if size == 1:
        remedy = "set tokenize.row_tokens or the sizes in `model` lower, or train.activation_checkpointing to full"
        raise CapacityError("one row does not fit into memory", value=message, remedy=remedy)
    return size // 2


def remember(work: Path, size: int) -> None:
    """Let the next attempt begin with this size; several workers may say so at once."""
    temporary = work / f".tmp-{FILE}-{os.getpid()}"
    temporary.write_text(str(size))
    temporary.replace(work / FILE)
