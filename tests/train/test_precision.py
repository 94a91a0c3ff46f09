"""The number format of matrix products, and the scale that float16 needs."""

from __future__ import annotations

import dataclasses
import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import CapacityError
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.plan import machine
from llm.train import precision
from llm.train.precision import LossScale, Precision
from tests.train.conftest import ROW_TOKENS, VOCAB_SIZE

CPU = torch.device("cpu")


def test_examples() -> None:
    assert doctest.testmod(precision).failed == 0


def test_the_recipe_decides_unless_it_says_auto() -> None:
    chosen: list[tuple[Precision, torch.dtype]] = [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
    for name, dtype in chosen:
        assert precision.resolve(name, CPU) == dtype
    flags = Path("/proc/cpuinfo").read_text()
    native = "avx512_bf16" in flags or "amx_bf16" in flags
    assert precision.resolve("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert machine.Machine("cpu").bf16("auto") == native


def test_float8_is_refused_where_it_would_not_be_faster() -> None:
    with pytest.raises(CapacityError, match=r"multiply float8: cpu; set train\.precision to bf16"):
        precision.resolve("fp8", CPU)


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float8_e4m3fn, torch.bfloat16),  # whatever isn't a float8 layer
    ],
)
def test_products_are_computed_in_that_format(dtype: torch.dtype, computed: torch.dtype) -> None:
    with precision.autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == computed


@given(st.lists(st.booleans(), max_size=12))
def test_the_loss_scale_moves_as_in_torch(overflows: list[bool]) -> None:
    """Against the update that torch.amp.GradScaler runs on a device."""
    interval = 3
    ours, scale, steps = LossScale(2.0**12), torch.tensor(2.0**12), torch.zeros((), dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "GROWTH_STEPS", interval)
        for overflow in overflows:
            ours = ours.after(overflow=overflow)
            torch._amp_update_scale_(scale, steps, torch.tensor(float(overflow)), 2.0, 0.5, interval)
            assert ours == LossScale(float(scale), int(steps))


def test_the_loss_scale_survives_a_checkpoint_and_its_bounds() -> None:
    scale = LossScale(2.0**12, 77)
    assert LossScale(**json.loads(json.dumps(dataclasses.asdict(scale)))) == scale
    assert LossScale(1.0).after(overflow=True) == LossScale(1.0)
    assert LossScale(2.0**24, precision.GROWTH_STEPS - 1).after(overflow=False) == LossScale(2.0**24)


@pytest.mark.parametrize(("scale", "writes", "expected"), [(1.0, 0, 3.0), (2.0, 1, 1.5)])
def test_only_a_scale_above_1_touches_the_gradients(scale: float, writes: int, expected: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    before = parameter.grad._version
    LossScale(scale).unscale([parameter])
    assert parameter.grad._version == before + writes
    assert parameter.grad.tolist() == [expected] * 2


def losses(rows: Path, dtype: torch.dtype, scale: LossScale, steps: int = 25) -> tuple[list[float], LossScale, list[int]]:
    """A decoder's losses, the scale in the end, and the steps that overflowed and weren't applied."""
    torch.manual_seed(0)
    tokens = torch.from_numpy(np.fromfile(rows / "train.tokens", dtype="<u2").astype(np.int64))
    windows = tokens[: 40 * ROW_TOKENS].view(40, ROW_TOKENS)
    model = Decoder(DecoderConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=64), VOCAB_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    found, skipped = [], []
    for step in range(steps):
        with precision.autocast(CPU, dtype):
            logits, _ = model(windows[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        (loss * scale.scale).backward()
        scale.unscale(model.parameters())
        overflow = not torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        if overflow:
            skipped.append(step)
        else:
            optimizer.step()
        scale = scale.after(overflow=bool(overflow))
        optimizer.zero_grad()
        found.append(loss.item())
    return found, scale, skipped


def test_float16_learns_as_float32_does(rows: Path) -> None:
    expected, _, _ = losses(rows, torch.float32, LossScale(1.0))
    found, scale, skipped = losses(rows, torch.float16, LossScale())
    assert expected[-1] < 0.8 * expected[0]
    assert not skipped
    assert scale == LossScale(2.0**16, 25)
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_steps_that_overflow_are_skipped_until_the_scale_fits(rows: Path) -> None:
    found, scale, skipped = losses(rows, torch.float16, LossScale(2.0**24), steps=40)
    assert skipped == list(range(len(skipped)))  # the first ones, then none
    assert len(skipped) >= 1
    assert scale.scale == 2.0 ** (24 - len(skipped))
    assert found[0] == found[len(skipped)]  # nothing was applied
    assert found[-1] < 0.8 * found[0]
