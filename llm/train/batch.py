"""What one forward pass reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm.data.rows import IGNORED


@dataclass(frozen=True)
class Batch:
    """A few rows: what the model takes, by the names of its parameters, and what it should say.

    Shapes: every tensor has the rows first; `targets_BT` holds IGNORED where a position doesn't count. `extra` holds
    what only the objective reads.
    """

    inputs: dict[str, Tensor]
    targets_BT: Tensor
    extra: dict[str, Tensor]
    part: int = 0  # of a mixture: which objective these rows belong to

    @property
    def counted(self) -> int:
        """Targets that count."""
        return int((self.targets_BT != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return sum(tensor.numel() for name, tensor in self.inputs.items() if name.startswith(("tokens_", "decoder_tokens_")))

    def to(self, device: torch.device) -> Batch:
        """The same rows on another device."""
        inputs, extra = ({name: tensor.to(device) for name, tensor in named.items()} for named in (self.inputs, self.extra))
        return Batch(inputs, self.targets_BT.to(device), extra, self.part)
