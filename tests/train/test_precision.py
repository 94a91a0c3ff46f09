"""The number format of matrix products."""

from __future__ import annotations

import pytest
import torch

from llm.train import precision

CPU = torch.device("cpu")


def test_the_recipe_decides_unless_it_says_auto() -> None:
    assert precision.resolve("fp32", CPU) == torch.float32
    assert precision.resolve("bf16", CPU) == torch.bfloat16
    native = torch.cpu.get_capabilities().get("amx_bf16", False)
    assert precision.resolve("auto", CPU) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_computed_in_that_format(dtype: torch.dtype) -> None:
    with precision.autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
