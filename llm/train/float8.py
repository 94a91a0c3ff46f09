"""Linear layers that multiply in float8, which chips from Ada and Hopper on do twice as fast as bfloat16.

Source: FP8 Formats for Deep Learning, https://arxiv.org/abs/2209.05433: e4m3 for weights and inputs, e5m2 for
gradients, which need the range more than the digits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # the chips multiply matrices whose sides divide by it
ABLE = (8, 9)  # compute capability of the first chip with float8 matrix products


def multiplies(device: torch.device) -> bool:
    """Whether this chip has float8 matrix products."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= ABLE


def convert(model: nn.Module) -> None:
    """Make every linear layer inside the blocks that is large enough a float8 one. Parameters and their names stay.

    Embeddings, head, norms and attention keep their format, and so do stacks of experts.
    """
    for block in cast(nn.ModuleList, model.blocks):
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear and layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0:
                block.set_submodule(name, Float8Linear.like(layer))


class Float8Linear(nn.Linear):
    """A linear layer whose three products, forward and backward, are in float8 with one scale per tensor, taken afresh each time.

    Weights and their gradient stay float32, as with any other precision.
    """

    @classmethod
    def like(cls, layer: nn.Linear) -> Float8Linear:
        """The same layer, with its very parameters."""
        with torch.device("meta"):
            found = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        found.weight, found.bias = layer.weight, layer.bias
        return found.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        x_ND = input.flatten(0, -2)
        padding = -len(x_ND) % MULTIPLE
        y_NF = cast(Tensor, Product.apply(F.pad(x_ND, (0, 0, 0, padding)), self.weight))[: len(x_ND)]
        return (y_NF if self.bias is None else y_NF + self.bias.to(y_NF.dtype)).unflatten(0, input.shape[:-1])


class Product(torch.autograd.Function):
    """y_NF = x_ND · w_FDᵀ in bfloat16, and the products of its gradient."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w_FD: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, w_FD)
        return multiply(x_ND, E4M3, w_FD, E4M3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (dy_NF,), (x_ND, w_FD) = gradients, ctx.saved_tensors
        dx_ND = multiply(dy_NF, E5M2, w_FD.T, E4M3)
        dw_FD = multiply(dy_NF.T, E5M2, x_ND.T, E4M3)
        return dx_ND.to(x_ND.dtype), dw_FD.to(w_FD.dtype)


def multiply(a_IK: Tensor, a_format: torch.dtype, b_JK: Tensor, b_format: torch.dtype) -> Tensor:
    """a_IK · b_JKᵀ in bfloat16, from float8 factors. The chips want both with consecutive K."""
    (a, a_scale), (b, b_scale) = rounded(a_IK, a_format), rounded(b_JK, b_format)
    one = F.ScalingType.TensorWise
    return F.scaled_mm(a, b.T, a_scale, one, b_scale, one, output_dtype=torch.bfloat16)


def rounded(values: Tensor, format: torch.dtype) -> tuple[Tensor, Tensor]:
    """Float8 numbers, and the float32 scale that makes them the values again; the largest value is the format's largest."""
    scale = values.abs().amax().float().clamp(min=1e-12) / torch.finfo(format).max
    return (values.float() / scale).to(format).contiguous(), scale
