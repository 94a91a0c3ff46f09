"""Loss and gradient against PyTorch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llm.data.rows import IGNORED
from llm.train.objective.cross_entropy import CrossEntropy


@pytest.mark.parametrize("scale", [1.0, 100.0])  # shares near 1 and near 0 too
def test_value_and_gradient_are_those_of_torch(scale: float) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(40, 30) * scale).requires_grad_()
    targets = torch.randint(0, 30, (40,))
    targets[::3] = IGNORED
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected * 0.37, logits)
    found = CrossEntropy.apply(logits, targets)
    (found_gradient,) = torch.autograd.grad(found * 0.37, logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradient, expected_gradient)


def test_a_batch_of_ignored_targets_teaches_nothing() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    nats = CrossEntropy.apply(logits, torch.full((4,), IGNORED))
    nats.backward()
    assert nats.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.randn(4096, 8).bfloat16()
    targets = torch.randint(0, 8, (4096,))
    found = CrossEntropy.apply(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.cross_entropy(logits.float(), targets, reduction="sum"))
