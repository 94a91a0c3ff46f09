"""The workers of a run on one device mesh, and what of rows and sequence each of them reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from llm.errors import RecipeError
from llm.train.parallel.config import LayoutConfig
from llm.train.parallel.world import World

DIMENSIONS = ("pp", "dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True)
class Layout:
    """A worker's place on the mesh of its run.

    Workers that differ only in pp, cp or tp are partners: they read the same rows. Names and order of the dimensions,
    the one that talks most innermost, are torchtitan's, https://arxiv.org/abs/2410.06511, section 2.1.
    """

    world: World
    degrees: LayoutConfig

    @classmethod
    def over(cls, world: World, degrees: LayoutConfig) -> Layout:
        """The layout of all workers of a world.

        Raises: RecipeError if they aren't a multiple of those that one copy of the model takes.
        """
        if world.size % degrees.model_workers:
            raise RecipeError(
                f"one copy of the model takes {degrees.model_workers} workers, which do not divide",
                value=world.size,
                remedy=f"set cluster.workers to a multiple of {degrees.model_workers}",
            )
        return cls(world, degrees)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Workers along each dimension."""
        degrees = self.degrees
        copies = self.world.size // degrees.model_workers
        return dict(zip(DIMENSIONS, (degrees.pipeline, copies, degrees.shard, degrees.context, degrees.tensor), strict=True))

    @cached_property
    def mesh(self) -> DeviceMesh:
        """Every worker; the first use is a collective call."""
        return init_device_mesh(self.world.device.type, tuple(self.sizes.values()), mesh_dim_names=DIMENSIONS)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """This worker's place along each dimension."""
        return {
            name: int(place) for name, place in zip(DIMENSIONS, np.unravel_index(self.world.rank, tuple(self.sizes.values())), strict=True)
        }

    @property
    def data_size(self) -> int:
        """Workers, or groups of partners, that read rows of their own."""
        return self.sizes["dp_replicate"] * self.sizes["dp_shard"]

    @property
    def data_rank(self) -> int:
        """This worker's number among them."""
        return self.ranks["dp_replicate"] * self.sizes["dp_shard"] + self.ranks["dp_shard"]

    @property
    def leads(self) -> bool:
        """Whether this worker speaks for its partners."""
        return not (self.ranks["pp"] or self.ranks["cp"] or self.ranks["tp"])

    @property
    def shares_parameters(self) -> bool:
        """Whether no worker holds the whole model; else DistributedDataParallel does."""
        return self.sizes["dp_shard"] * self.sizes["pp"] * self.sizes["tp"] > 1

    @property
    def leads_stage(self) -> bool:
        """Whether this worker is the first of its pipeline stage."""
        return self.data_rank == self.ranks["cp"] == self.ranks["tp"] == 0

    @property
    def cuts_sequence(self) -> bool:
        """Whether partners hold different parts of each row."""
        return self.sizes["cp"] * self.sizes["tp"] > 1

    @property
    def waits(self) -> bool:
        """Whether forward passes of workers that read different rows depend on each other."""
        return self.shares_parameters and self.data_size > 1

    def part(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The consecutive share of a batch that this worker and its partners read; shares differ by one row at most."""
        return np.array_split(indices, self.data_size)[self.data_rank]

    def sum(self, *numbers: float | Tensor) -> list[float]:
        """Each number, which partners agree on, added up over all workers that read rows of their own."""
        return self.world.sum(*(number if self.leads else 0.0 for number in numbers))

    def sum_of_partners(self, *numbers: float | Tensor) -> list[float]:
        """Each number added up over this worker and its partners."""
        totals = torch.stack([torch.as_tensor(number, dtype=torch.float64, device=self.world.device) for number in numbers])
        if self.sizes["pp"] * self.sizes["cp"] * self.sizes["tp"] > 1:
            dist.all_reduce(totals, group=self._partners)
        return list(totals.tolist())

    def most(self, number: int) -> int:
        """The largest of all workers' numbers."""
        largest = torch.tensor(number, device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def group(self, dimension: str) -> ProcessGroup:
        """This worker and those that differ from it along one dimension."""
        return self.mesh.get_group(dimension)

    @cached_property
    def _partners(self) -> ProcessGroup:
        return self.mesh["pp", "cp", "tp"]._flatten("partners").get_group()

    @cached_property
    def replicas(self) -> DeviceMesh:
        """Workers that hold the same parameters and see other tokens; flat."""
        return self.mesh["dp_replicate", "dp_shard", "cp"]._flatten("dp_cp")

    @property
    def copies(self) -> ProcessGroup | None:
        """This worker and those that hold the same parameters, or the same shards of them; None where there is no other.

        Vectors in blocks, which tensor-parallel workers hold alike as well, are left out.
        """
        if self.shares_parameters:
            return self.group("dp_replicate") if self.sizes["dp_replicate"] > 1 else None
        return self.replicas.get_group() if self.world.size > 1 else None

    @cached_property
    def shards(self) -> DeviceMesh:
        """Copies by the workers that share the parameters of a block between them."""
        return DeviceMesh._concatenate([self.mesh["dp_replicate"], self.mesh["dp_shard", "cp"]._flatten("dp_shard_cp")])

    @cached_property
    def outer_shards(self) -> DeviceMesh:
        """The same for parameters that no block holds: tensor-parallel workers see other tokens there, so they share them too."""
        return DeviceMesh._concatenate([self.mesh["dp_replicate"], self.mesh["dp_shard", "cp", "tp"]._flatten("dp_shard_cp_tp")])

    def context_positions(self, T: int) -> Tensor:
        """Places in a sequence of T that this worker's context part holds: one chunk from either end.

        Later tokens attend to more, so a chunk from the end is paired with one from the beginning.

        Source: Llama 3, https://arxiv.org/abs/2407.21783, section 3.3.2.
        """
        parts, rank = self.sizes["cp"], self.ranks["cp"]
        chunks = torch.arange(T, device=self.world.device).chunk(2 * parts)
        return torch.cat((chunks[rank], chunks[2 * parts - 1 - rank])) if parts > 1 else torch.arange(T, device=self.world.device)

    def positions(self, T: int) -> Tensor:
        """Places whose embedding, norms and loss this worker computes: its tensor-parallel share of its context part."""
        return self.context_positions(T).chunk(self.sizes["tp"])[self.ranks["tp"]]

    def holders(self, tensor: Tensor) -> int:
        """Workers that hold the same piece of a parameter of this worker's pipeline stage."""
        pieces = 1
        if isinstance(tensor, DTensor):
            for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
                pieces *= 1 if placement.is_replicate() else size
        return self.world.size // (self.sizes["pp"] * pieces)
