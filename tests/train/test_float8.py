"""Float8 layers against a float64 product of numbers that were rounded to float8 one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.train import float8, precision
from llm.train.float8 import E4M3, E5M2, Float8Linear

CPU = torch.device("cpu")
MANTISSA_BITS, SMALLEST_EXPONENT = {E4M3: 3, E5M2: 2}, {E4M3: -6, E5M2: -14}


def nearest(values: Tensor, format: torch.dtype) -> np.ndarray:
    """Values as a float8 tensor with one scale has them: digits cut to the format's, by hand, in float64."""
    values = values.detach()
    scale = float(values.abs().max()) / torch.finfo(format).max
    scaled = values.double().numpy() / scale
    exponents = np.maximum(np.floor(np.log2(np.maximum(np.abs(scaled), 1e-30))), SMALLEST_EXPONENT[format])
    spacing = 2.0 ** (exponents - MANTISSA_BITS[format])
    return np.round(scaled / spacing) * spacing * scale


@pytest.mark.parametrize("format", [E4M3, E5M2])
def test_numbers_are_rounded_to_the_nearest_that_the_format_has(format: torch.dtype) -> None:
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).exp()
    numbers, scale = float8.rounded(values, format)
    found = numbers.double().numpy() * float(scale)
    exact = np.isclose(found, nearest(values, format), rtol=1e-5)
    assert exact.mean() > 0.999  # a value in the middle of two may fall to either side in float32
    np.testing.assert_allclose(found, values, rtol=2.0 ** -(MANTISSA_BITS[format] + 1) * 1.01, atol=float(scale) * 2.0**-9)


@pytest.mark.parametrize("rows", [32, 21])
@pytest.mark.parametrize("bias", [True, False])
def test_products_forward_and_backward_are_those_of_rounded_numbers(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias)
    eight = Float8Linear.like(layer)
    x_ND, dy_NF = torch.randn(rows, 48, requires_grad=True), torch.randn(rows, 32)
    with precision.autocast(CPU, E4M3):
        y_NF = eight(x_ND)
    y_NF.backward(dy_NF.to(y_NF.dtype))
    x, w, dy = nearest(x_ND, E4M3), nearest(layer.weight, E4M3), nearest(dy_NF.bfloat16().float(), E5M2)
    expected = x @ w.T + (layer.bias.detach().numpy() if bias else 0)
    for found, reference in ((y_NF, expected), (x_ND.grad, dy @ w), (layer.weight.grad, dy.T @ x)):
        assert found is not None
        difference = found.detach().double().numpy() - reference
        assert np.linalg.norm(difference) < 0.004 * np.linalg.norm(reference)  # the result is bfloat16
    if bias:
        torch.testing.assert_close(layer.bias.grad, dy_NF.bfloat16().float().sum(0), rtol=0.02, atol=0.05)


def test_layers_inside_blocks_are_converted_and_keep_their_parameters() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=1, ffn_width=64)
    model = Decoder(config, 48)  # keys and values are 8 wide: too narrow
    before = dict(model.named_parameters())
    tokens_BT = torch.randint(48, (2, 16))
    with torch.no_grad():
        expected, _ = model(tokens_BT)
        float8.convert(model)
        with precision.autocast(CPU, E4M3):
            found, _ = model(tokens_BT)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert list(before) == [name for name, _ in model.named_parameters()]
    converted = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    assert {"gate", "up", "down", "query", "output"} >= converted >= {"gate", "up", "down"}
    assert type(model.head) is nn.Linear
    relative = (found.float() - expected).norm() / expected.norm()
    assert 0.001 < relative < 0.1


def test_a_layer_of_zeros_stays_finite() -> None:
    layer = Float8Linear.like(nn.Linear(16, 16))
    with precision.autocast(CPU, E4M3):
        y_NF = layer(torch.zeros(16, 16, requires_grad=True))
    y_NF.sum().backward()
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()
