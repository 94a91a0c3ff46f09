"""Orthogonalised momentum against a slow float64 version and PyTorch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from llm.train import muon
from llm.train.muon import Muon, orthogonalised

SHAPES = [(16, 48), (48, 16), (32, 32), (7, 5), (1, 9)]


def slow(matrix: Tensor) -> Tensor:
    """The polynomial on the singular values themselves, in float64."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / matrix.double().norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    difference = (orthogonalised(matrix).double() - slow(matrix)).norm() / slow(matrix).norm()
    assert difference < 0.02  # bfloat16 has 8 bits


def test_singular_values_end_near_one() -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)).float())
        assert 0.6 < values.max() < 1.3


def test_a_stack_is_its_matrices_one_by_one() -> None:
    torch.manual_seed(0)
    stack = torch.randn(2, 3, 24, 16)
    alone = torch.stack([torch.stack([orthogonalised(matrix) for matrix in row]) for row in stack])
    assert orthogonalised(stack).shape == stack.shape
    torch.testing.assert_close(orthogonalised(stack), alone, rtol=0, atol=0.01)


def test_nothing_comes_from_a_gradient_of_nothing() -> None:
    assert torch.equal(orthogonalised(torch.zeros(4, 8)), torch.zeros(4, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("elements", [1, 2**20])
def test_it_moves_as_torch_does(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same rates, momentum and decay, however many matrices are multiplied together."""
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", elements)
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in SHAPES * 2]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    begun = [parameter.detach().clone() for parameter in ours]
    one = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(4):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, its, before in zip(ours, theirs, begun, strict=True):
        assert (mine - its).norm() < 0.01 * (its - before).norm()


def test_each_expert_of_a_stack_is_a_matrix_of_its_own() -> None:
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 24, 16))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stack.grad = torch.randn_like(stack)
    for matrix, gradient in zip(alone, stack.grad, strict=True):
        matrix.grad = gradient.clone()
    before = stack.detach().clone()
    for parameters in ([stack], alone):
        Muon(parameters, lr=0.1, momentum=0.0, weight_decay=0.0).step()
    torch.testing.assert_close(stack.detach(), torch.stack(list(alone)).detach(), rtol=0, atol=1e-3)
    largest = torch.linalg.matrix_norm(before - stack.detach(), ord=2) / (0.1 * math.sqrt(24 / 16))
    assert torch.all((largest > 0.6) & (largest < 1.3))
