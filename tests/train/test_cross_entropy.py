"""Sums and gradients of the chunked head against PyTorch's cross-entropy over whole logits."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm.data.rows import IGNORED
from llm.train.objective import cross_entropy as chunked
from llm.train.objective.cross_entropy import cross_entropy

N, D, V = 40, 12, 30


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven positions at a time, two of them in the cache, so that neither divides what there is."""
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 7 * V)
    monkeypatch.setattr(chunked, "CACHED_FLOATS", 2 * V)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(x, weight, bias).to(torch.promote_types(x.dtype, torch.float32))
    squares = torch.logsumexp(logits, dim=-1)[targets != IGNORED].square().sum()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"), squares


def inputs(*, scale: float = 1.0, dtype: torch.dtype = torch.float64, bias: bool = True) -> tuple[Any, ...]:
    torch.manual_seed(0)
    x, weight, offset = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((N, D), (V, D), (V,)))
    targets = torch.randint(0, V, (N,))
    targets[::3] = IGNORED
    return (x * scale).detach().requires_grad_(), weight, offset if bias else None, targets


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])  # shares near 1 / V, between, and near 0 and 1
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("z_loss", [True, False])
def test_sums_and_gradients_are_those_of_torch(scale: float, bias: bool, z_loss: bool) -> None:
    x, weight, offset, targets = inputs(scale=scale, bias=bias)
    leaves = [tensor for tensor in (x, weight, offset) if tensor is not None]
    expected, found = reference(x, weight, offset, targets), cross_entropy(x, weight, offset, targets, z_loss=z_loss)
    torch.testing.assert_close(found, expected)
    for slopes in ([0.37], [0.37, 1.7], [0.0, 1.7])[: 3 if z_loss else 1]:
        scales = [torch.tensor(slope, dtype=torch.float64) for slope in slopes]
        wanted, got = (torch.autograd.grad(sums[: len(scales)], leaves, scales, retain_graph=True) for sums in (expected, found))
        torch.testing.assert_close(got, wanted)


def test_gradients_are_those_of_finite_differences() -> None:
    x, weight, bias, targets = inputs()
    assert torch.autograd.gradcheck(lambda *leaves: cross_entropy(leaves[0], leaves[1], leaves[2], targets), (x, weight, bias))


def test_squares_without_z_loss_carry_no_gradient() -> None:
    assert not cross_entropy(*inputs(), z_loss=False)[1].requires_grad


def test_a_batch_of_ignored_targets_teaches_nothing() -> None:
    x, weight, bias, targets = inputs()
    nats, squares = cross_entropy(x, weight, bias, torch.full_like(targets, IGNORED))
    (nats + squares).backward()
    assert (nats.item(), squares.item()) == (0, 0)
    assert all(not tensor.grad.any() for tensor in (x, weight, bias))


def test_a_frozen_head_still_passes_the_gradient_on() -> None:
    x, weight, _, targets = inputs(bias=False)
    (expected,) = torch.autograd.grad(reference(x, weight, None, targets)[0], x)
    cross_entropy(x, weight.detach(), None, targets)[0].backward()
    torch.testing.assert_close(x.grad, expected)


def test_without_gradient_nothing_is_kept() -> None:
    x, weight, bias, targets = inputs()
    with torch.no_grad():
        found = cross_entropy(x, weight, bias, targets)
    assert not found[0].requires_grad
    torch.testing.assert_close(found, reference(x, weight, bias, targets))


def test_bfloat16_products_are_summed_in_float32() -> None:
    x, weight, bias, targets = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropy(x, weight, bias, targets)
    assert found[0].dtype == found[1].dtype == torch.float32
    expected = reference(x, weight, bias, targets)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    wanted, got = (torch.autograd.grad(sums, (x, weight, bias)) for sums in (expected, found))
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self.known:
            self.known.add(address)
            self.alive += size
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.alive -= size


def test_logits_take_the_memory_of_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    positions, vocabulary, width, chunk = 512, 4096, 8, 64
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", chunk * vocabulary)
    monkeypatch.setattr(chunked, "CACHED_FLOATS", 2 * vocabulary)
    x, weight = torch.randn(positions, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (positions,))
    with torch.autocast("cpu", torch.bfloat16), Peak() as peak:
        cross_entropy(x, weight, None, targets, z_loss=False)
    gradients_bytes = 4 * (x.numel() + weight.numel())
    part_bytes = 2 * (2 * weight.numel() + 2 * chunk * width)  # weight and its gradient of one chunk, in bfloat16
    assert peak.most - gradients_bytes - part_bytes < 1.2 * 2 * chunk * vocabulary
