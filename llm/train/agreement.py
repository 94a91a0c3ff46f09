"""Whether workers that should hold the same parameters do, to the bit.

Copies that saw the same gradients are equal bit for bit. Where they are not, a machine computed or kept something
wrong without a word, and the next checkpoint would carry it on: compare before every checkpoint, too.

Source: silent data corruption in fleets, https://arxiv.org/abs/2102.11245; in training, section 3.3.4 of Llama 3,
https://arxiv.org/abs/2407.21783.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from llm.errors import DivergenceError

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}  # by width in bytes


def check_agreement(step: int, model: nn.Module, group: ProcessGroup | None = None) -> None:
    """Compare the parameters of this worker with those of every other in `group`: the copies of one shard; None: all workers.

    All workers call it together, each with its own group.

    Raises: DivergenceError on all of them alike, with the ranks that hold other bits than most of their group. It is
    transient: a group that starts again reads the last checkpoint, on which all agreed.
    """
    parameters = dict(model.named_parameters())
    own = digests(parameters.values())
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    differs = (torch.stack(gathered) != gathered[0]).any(dim=0)
    anywhere = differs.any().int()
    dist.all_reduce(anywhere)
    if not anywhere:
        return
    members = dist.get_process_group_ranks(group or dist.group.WORLD)
    suspects = [members[place] for place in minority([tuple(each.tolist()) for each in gathered])]
    names = [name for name, differing in zip(parameters, differs.tolist(), strict=True) if differing]
    ranks, tensors = (_union(found) for found in zip(*_from_all((suspects, names)), strict=True))
    raise DivergenceError(
        f"workers disagree on the parameters at step {step}",
        value=f"worker {', '.join(map(str, sorted(ranks)))} in {len(tensors)} tensors, first {tensors[0]}",
        remedy="test memory and processors of these machines if it comes back",
        transient=True,
    )


def _from_all(found: tuple[list[int], list[str]]) -> list[Any]:
    """What every worker found, by rank."""
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    return everything


def _union(lists: Iterable[list[Any]]) -> list[Any]:
    """Each element once, in the order of first appearance."""
    return list(dict.fromkeys(itertools.chain.from_iterable(lists)))


@torch.no_grad()
def digests(tensors: Iterable[Tensor]) -> Tensor:
    """A 64-bit digest of each tensor's bits; of a sharded tensor, those of this worker's shard."""
    return torch.stack([digest(tensor.to_local() if hasattr(tensor, "to_local") else tensor) for tensor in tensors])


def digest(tensor: Tensor) -> Tensor:
    """Σ over places of odd weight · bits, modulo 2**64: no single changed element can leave it as it was.

    The weight changes from column to column, so that moved elements show as well. One pass over the memory, no copy.
    """
    rows = tensor.detach().reshape(-1, max(1, tensor.shape[-1]) if tensor.dim() else 1)
    row_bytes = rows.shape[1] * rows.element_size()
    words = rows.view(next(integer for width, integer in INTEGERS.items() if row_bytes % width == 0))
    columns = words.sum(dim=0)
    weights = torch.arange(len(columns), device=columns.device) * -7046029254386353131  # the golden ratio, as in llm.data.hashing
    return (columns * (weights * 2 + 1)).sum()


def minority(digests: list[tuple[int, ...]]) -> list[int]:
    """Places of the digests that differ from the most frequent one; all of them where none is more frequent than another."""
    (winner, votes), *others = Counter(digests).most_common()
    if others and others[0][1] == votes:
        return list(range(len(digests)))
    return [place for place, each in enumerate(digests) if each != winner]
