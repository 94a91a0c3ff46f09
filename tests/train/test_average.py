"""The average of the weights against PyTorch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from llm.train.average import Average


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def disturb(model: nn.Module, step: int) -> None:
    """Stands for an optimizer's step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_it_is_the_average_that_torch_computes() -> None:
    model = network()
    found, expected = Average(model, decay=0.9), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(1, 8):
        disturb(model, step)
        found.update(first=step == 1)
        expected.update_parameters(model)
        for name, parameter in expected.module.named_parameters():
            assert torch.equal(found.tensors[name], parameter)


def test_the_model_has_it_inside_and_its_own_weights_after() -> None:
    model = network()
    average = Average(model, decay=0.5)
    for step in (1, 2):
        disturb(model, step)
        average.update(first=step == 1)
    own, averaged = ({name: tensor.clone() for name, tensor in each.items()} for each in (average.parameters, average.tensors))
    with average.applied():
        assert all(torch.equal(parameter, averaged[name]) for name, parameter in model.named_parameters())
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError  # a validation that fails
    assert all(torch.equal(parameter, own[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in average.tensors.items())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_resumed_from_a_checkpoint_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = network()
    average = Average(whole, decay=0.9)
    for step in range(1, 7):
        disturb(whole, step)
        average.update(first=step == 1)
        if step == 3:
            state_dict_saver.save({"model": whole.state_dict(), "average": average.tensors}, checkpoint_id=tmp_path, no_dist=True)

    resumed = network()
    again = Average(resumed, decay=0.9)
    state_dict_loader.load({"model": resumed.state_dict(), "average": again.tensors}, checkpoint_id=tmp_path, no_dist=True)
    for step in range(4, 7):
        disturb(resumed, step)
        again.update(first=step == 1)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in average.tensors.items())
