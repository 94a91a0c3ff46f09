"""One flipped bit among copies of the parameters is found, and the worker that holds it is named."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llm.errors import DivergenceError
from llm.train.agreement import check_agreement, digest, minority
from llm.train.config import ClusterConfig
from llm.train.job import TrainJob
from llm.train.loop import Attempt, watch
from llm.train.parallel.world import World
from tests.train.conftest import JobMaker

Part = Callable[[int], None]


def flip(tensor: Tensor, place: int, bit: int) -> None:
    """One bit of one float32, in place."""
    words = tensor.detach().view(torch.int32).view(-1)
    words[place] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 5), nn.LayerNorm(5))


@pytest.mark.parametrize("shape", [(7, 6), (7, 5), (9,), (), (2, 3, 4)])
def test_every_single_flipped_bit_shows(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = digest(tensor).item()
    for place in range(tensor.numel()):
        for bit in range(32):
            flip(tensor, place, bit)
            assert digest(tensor).item() != whole, (place, bit)
            flip(tensor, place, bit)
    assert digest(tensor).item() == whole


def test_moved_columns_show_and_every_dtype_has_a_digest() -> None:
    tensor = torch.arange(24.0).view(4, 6)
    assert digest(tensor).item() != digest(tensor[:, [2, 3, 0, 1, 4, 5]].contiguous()).item()
    for dtype in (torch.float64, torch.bfloat16, torch.float8_e4m3fn):
        assert digest(tensor.to(dtype)).dtype == torch.int64


def test_the_rarer_digests_are_suspects_and_all_are_where_none_is_rarer() -> None:
    assert minority([(1,), (1,), (2,), (1,)]) == [2]
    assert minority([(1,), (2,)]) == [0, 1]
    assert minority([(1,), (1,), (2,), (2,)]) == [0, 1, 2, 3]
    assert minority([(1,), (2,), (3,), (2,)]) == [0, 2]


def one_of_three(rank: int) -> None:
    copy = model()
    check_agreement(99, copy)
    if rank == 1:
        flip(copy[1].weight, 13, 0)
    with pytest.raises(DivergenceError, match=r"step 100: worker 1 in 1 tensors, first 1\.weight") as caught:
        check_agreement(100, copy)
    assert caught.value.transient


def one_of_two(rank: int) -> None:
    copy = model()
    if rank == 1:
        flip(copy[2].bias, 4, 30)
    with pytest.raises(DivergenceError, match=r"worker 0, 1 in 1 tensors, first 2\.bias"):
        check_agreement(7, copy)


def shards_differ_and_copies_do_not(rank: int) -> None:
    """Two copies of two shards each: workers 0 and 2 hold the first shard, 1 and 3 the second. All of them end."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    sharded = fully_shard(model(), mesh=mesh)
    check_agreement(1, sharded, mesh.get_group("replicate"))
    if rank == 3:
        flip(sharded[0].weight.to_local(), 2, 22)
    with pytest.raises(DivergenceError, match=r"worker 1, 3 in 1 tensors, first 0\.weight"):
        check_agreement(2, sharded, mesh.get_group("replicate"))


class Flipping(Attempt):
    """An attempt in which worker 1 goes wrong at step 2 without a word."""

    def apply(self, step: int) -> float:
        rate = super().apply(step)
        if step == 2 and self.world.rank == 1:
            flip(next(self.state.parameters()), 5, 1)
        return rate


def one_of_two_that_train(job: TrainJob, rank: int) -> None:
    """It is found at the next check, here before the checkpoint of step 4, which is not written."""
    job.work.mkdir(exist_ok=True)
    world = World.current("cpu")
    with watch(job, world) as dog:
        attempt = Flipping(job, world, dog)
        with pytest.raises(DivergenceError, match="parameters at step 4: worker 0, 1 in 1 tensors"):
            attempt.run()
        attempt.close()
    assert not list((job.work / "checkpoints").glob("step-*"))


def member(part: Part, rank: int, size: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    part(rank)
    dist.destroy_process_group()


@pytest.fixture
def spawned() -> Iterator[list[multiprocessing.process.BaseProcess]]:
    processes: list[multiprocessing.process.BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()


@pytest.mark.parametrize(("part", "size"), [(one_of_three, 3), (one_of_two, 2), (shards_differ_and_copies_do_not, 4)])
def test_workers(part: Part, size: int, tmp_path: Path, spawned: list[multiprocessing.process.BaseProcess]) -> None:
    run(part, size, tmp_path, spawned)


@pytest.mark.parametrize("layout", [{}, {"context": 2}], ids=["copies of all rows", "copies of parts of a row"])
def test_a_training_compares_its_copies(
    layout: dict[str, int], make_job: JobMaker, tmp_path: Path, spawned: list[multiprocessing.process.BaseProcess]
) -> None:
    cluster = ClusterConfig.model_validate({"workers": 2, "layout": layout})
    run(partial(one_of_two_that_train, replace(make_job(), cluster=cluster)), 2, tmp_path, spawned)


def run(part: Part, size: int, tmp_path: Path, spawned: list[multiprocessing.process.BaseProcess]) -> None:
    """Let every member of a group do its part; all must end well."""
    fork = multiprocessing.get_context("fork")
    spawned.extend(fork.Process(target=member, args=(part, rank, size, tmp_path / "meeting")) for rank in range(size))
    for process in spawned:
        process.start()
    for process in spawned:
        process.join(timeout=60)
    assert [process.exitcode for process in spawned] == [0] * size
