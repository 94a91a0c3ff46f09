"""AdamW that keeps its two moments in one byte per element each, a quarter of the memory.

Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861, sections 2.1 and 2.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed.tensor
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter
from torch.optim import Optimizer

from llm.errors import RecipeError

BLOCK = 256  # elements of a row that share one scale
SIGNED = {"exp_avg": True, "root": False}  # the moments, and whether they have a sign


class AdamW8bit(Optimizer):
    """AdamW with decoupled decay; norms and biases, which are small and matter most, keep float32 moments.

    Of the second moment the root is kept: squares span twice the decades of a gradient, and one rounded down to 0
    would move its weight by far too much. Blocks lie within rows, so that a shard of rows is what it is in the whole.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure is ever called
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= _fresh(parameter)
        state["step"] += 1
        steps, (beta1, beta2), gradient = int(state["step"]), group["betas"], _local(cast(Tensor, parameter.grad))
        mean = _loaded(state, "exp_avg").lerp(gradient, 1 - beta1)
        root = _loaded(state, "root").square().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
        _store(state, "exp_avg", mean)
        _store(state, "root", root)
        weights, rate = _local(parameter), group["lr"]
        denominator = root.div_((1 - beta2**steps) ** 0.5).add_(group["eps"])
        weights.mul_(1 - rate * group["weight_decay"]).addcdiv_(mean, denominator, value=-rate / (1 - beta1**steps))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave; torch turns all of it into the parameters' format on the way, which bytes survive."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in SIGNED:
                if f"{name}_scale" in state:
                    state[name] = state[name].to(torch.uint8)


def quantised(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Each value as the nearest code times its block's largest magnitude: bytes (…, columns), scales (…, blocks)."""
    columns = values.shape[-1]
    blocks = F.pad(values, (0, -columns % BLOCK)).unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(dim=-1)
    shares = (blocks / scales.clamp(min=torch.finfo(scales.dtype).tiny).unsqueeze(-1)).flatten(-2)[..., :columns]
    return _looked_up(_numbers(signed, values.device), shares.half().view(torch.int16).int() + 2**15), scales


def dequantised(numbers: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The values that `quantised` rounded to."""
    columns = numbers.shape[-1]
    return _looked_up(_codes(signed, numbers.device), numbers.int()) * scales.repeat_interleave(BLOCK, dim=-1)[..., :columns]


def _looked_up(table: Tensor, places: Tensor) -> Tensor:
    """`table[places]`, which on a CPU takes ten times as long."""
    return table.index_select(0, places.flatten()).view(places.shape)


@functools.cache
def _numbers(signed: bool, device: torch.device) -> Tensor:
    """The number of the code nearest to each float16, in the order of their bits: a search among 256 is slow."""
    codes = _codes(signed, device)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(torch.float16)
    return torch.bucketize(halves.float(), (codes[1:] + codes[:-1]) / 2).to(torch.uint8)


@functools.cache
def _codes(signed: bool, device: torch.device) -> Tensor:
    """256 numbers up to 1, dense in each decade down to 10⁻⁷ and the denser the larger they are.

    Leading zeros of a byte choose the decade, the bits that are left a place in it. Without a sign a bit more is left.
    """
    decades = [(10.0**-zeros, 2 ** (6 - zeros + (not signed))) for zeros in range(7)]
    positive = [decade * (0.1 + 0.9 * (place + 0.5) / places) for decade, places in decades for place in range(places)]
    negative = [-code for code in positive] if signed else []
    return torch.tensor(sorted([*negative, 0.0, *positive, 1.0]), device=device)


def _fresh(parameter: Parameter) -> dict[str, Tensor]:
    """Moments of 0: with a scale of 0 any byte is.

    Raises: RecipeError if a parameter is sharded within its rows.
    """
    state = {"step": torch.zeros(())}
    if parameter.dim() < 2:
        return state | {name: torch.zeros_like(parameter) for name in SIGNED}
    for name in SIGNED:
        state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
        state[f"{name}_scale"] = _fresh_scales(parameter)
    return state


def _fresh_scales(parameter: Parameter) -> Tensor:
    shape = (*parameter.shape[:-1], -(-parameter.shape[-1] // BLOCK))
    if not isinstance(parameter, DTensor):
        return parameter.new_zeros(shape)
    if any(isinstance(placement, Shard) and placement.dim == parameter.dim() - 1 for placement in parameter.placements):
        raise RecipeError(
            "8-bit moments need whole rows",
            value=f"a parameter sharded by {parameter.placements}",
            remedy="set train.optimizer.state_bits to 32",
        )
    return torch.distributed.tensor.zeros(shape, dtype=parameter.dtype, device_mesh=parameter.device_mesh, placements=parameter.placements)


def _loaded(state: dict[str, Tensor], name: str) -> Tensor:
    """A moment in float32."""
    values = _local(state[name])
    if f"{name}_scale" not in state:
        return values
    return dequantised(values, _local(state[f"{name}_scale"]), signed=SIGNED[name])


def _store(state: dict[str, Tensor], name: str, moment: Tensor) -> None:
    if f"{name}_scale" not in state:
        _local(state[name]).copy_(moment)
        return
    for kept, value in zip((name, f"{name}_scale"), quantised(moment, signed=SIGNED[name]), strict=True):
        _local(state[kept]).copy_(value)


def _local(tensor: Tensor) -> Tensor:
    """This worker's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
