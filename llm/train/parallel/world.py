"""The workers of a run, seen from one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from llm.errors import CapacityError, TrainyardError


@dataclass(frozen=True)
class World:
    """Rank of this worker among `size`, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def current(cls, device: str = "auto") -> World:
        """The process group and GPU that whoever started this worker chose, or a world of one.

        Raises: CapacityError if `device` is cuda and this worker sees no GPU.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise CapacityError("no GPU is visible", value=f"CUDA of torch {torch.__version__}", remedy="set cluster.use_gpu to false")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return cls(rank, size, torch.device("cpu") if device == "cpu" else torch.device("cuda", torch.cuda.current_device()))

    def part(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """This worker's consecutive share of a batch; shares differ by one row at most."""
        return np.array_split(indices, self.size)[self.rank]

    def sum(self, *numbers: float | Tensor) -> list[float]:
        """Each number added up over all workers, in float64."""
        totals = torch.stack([torch.as_tensor(number, dtype=torch.float64, device=self.device) for number in numbers])
        if self.size > 1:
            dist.all_reduce(totals)
        return list(totals.tolist())

    def gather(self, value: Any) -> list[Any]:
        """This value from every worker, by rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def first(self, compute: Callable[[], Any]) -> Any:
        """What rank 0 computes, on every worker; where it fails, all fail alike and none is left waiting.

        Other failures than ours and the system's can't be counted on to survive pickling: of those the others get the news only.
        """
        if self.rank > 0:
            value, failure = self._from_first([None, None])
            if failure is not None:
                raise failure
            return value
        outcome: list[Any] = [None, RuntimeError("worker 0 failed, and its own error says why")]
        try:
            outcome = [compute(), None]
        except (TrainyardError, OSError) as error:
            outcome = [None, error]
            raise
        finally:
            self._from_first(outcome)
        return outcome[0]

    def _from_first(self, outcome: list[Any]) -> list[Any]:
        """Rank 0's list, on every worker."""
        if self.size > 1:
            dist.broadcast_object_list(outcome, device=self.device)
        return outcome
