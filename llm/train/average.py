"""An exponential average of the weights, which generalises better than the last step's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """The average of a model's parameters over its steps; `tensors`, by name, are its whole state.

    Buffers aren't averaged. Sharded parameters have sharded averages.

    Source: Polyak averaging with decay, as in https://arxiv.org/abs/1706.03762, section 6.1, and
    https://arxiv.org/abs/2405.18392, section 4.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.parameters = decay, dict(model.named_parameters())
        self.tensors: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, *, first: bool) -> None:
        """Take in the weights after a step; those after the first applied one are the average, so that initial ones leave no trace."""
        for name, parameter in self.parameters.items():
            self.tensors[name].lerp_(parameter, 1.0 if first else 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights: validation and the final model are theirs."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
