"""Moments in bytes: what rounding loses, what it saves, and that a checkpoint keeps every bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.train.adamw8bit import BLOCK, AdamW8bit, _codes, dequantised, quantised
from tests.train.conftest import ROW_TOKENS, VOCAB_SIZE

CPU = torch.device("cpu")


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_paper(signed: bool) -> None:
    """Dettmers, section 2.2: with a sign, byte 0b0_001_1010 is 10⁻² times a place on the line from 0.1 to 1; 7 decades and 0."""
    codes = _codes(signed, CPU)
    assert len(codes.unique()) == 256
    assert (float(codes.min()), float(codes.max())) == (pytest.approx(-0.993, abs=1e-3) if signed else 0.0, 1.0)
    positive = codes[codes > 0]
    per_decade = [int(((positive > 10.0 ** -(zeros + 1)) & (positive < 10.0**-zeros)).sum()) for zeros in range(7)]
    assert per_decade == [2 ** (6 - zeros + (not signed)) for zeros in range(7)]
    if signed:
        assert torch.equal(positive[:-1], -codes[codes < 0].flip(0))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), columns=st.integers(1, 600), signed=st.booleans(), exponent=st.integers(-30, 10))
def test_every_value_becomes_the_nearest_code(seed: int, columns: int, signed: bool, exponent: int) -> None:
    random = np.random.default_rng(seed)
    drawn = random.normal(size=(3, columns)) * 10.0 ** random.uniform(-6, 0, (3, columns)) * 10.0**exponent
    values = torch.tensor(drawn if signed else np.abs(drawn), dtype=torch.float32)
    found = dequantised(*quantised(values, signed=signed), signed=signed)
    codes = _codes(signed, CPU).numpy()
    for row in range(3):
        for first in range(0, columns, BLOCK):
            block = values[row, first : first + BLOCK].numpy()
            shares = block / np.abs(block).max()
            errors = np.abs(shares[:, None] - codes[None, :]).min(axis=1)
            rounding = 2.0**-11 * np.abs(shares) + 2.0**-24  # of float16, in which the nearest is looked up
            assert np.all(np.abs(found[row, first : first + BLOCK].numpy() / np.abs(block).max() - shares) <= errors + 2 * rounding)


def test_nothing_stays_nothing() -> None:
    assert torch.equal(dequantised(*quantised(torch.zeros(2, 300), signed=True), signed=True), torch.zeros(2, 300))


def test_a_shard_of_rows_is_what_it_is_in_the_whole() -> None:
    values = torch.randn(6, 400, generator=torch.Generator().manual_seed(0))
    for whole, shard in zip(quantised(values, signed=True), quantised(values[2:5], signed=True), strict=True):
        assert torch.equal(whole[2:5], shard)


def decoder(width: int = 32) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(width=width, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=2 * width), VOCAB_SIZE)


def trained(model: Decoder, optimizer: torch.optim.Optimizer, rows: Path, *, steps: range) -> list[float]:
    """Losses of these steps over the rows, 12 a step."""
    tokens = torch.from_numpy(np.fromfile(rows / "train.tokens", dtype="<u2").astype(np.int64))
    losses = []
    for step in steps:
        first = torch.arange(12) * 5 + step % 5
        windows = torch.stack([tokens[place * ROW_TOKENS : (place + 1) * ROW_TOKENS + 1] for place in first])
        logits, _ = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(tensor.nbytes for state in optimizer.state.values() for name, tensor in state.items() if name != "step")


def test_it_learns_as_fast_as_with_32_bits_in_a_quarter_of_the_memory(rows: Path) -> None:
    found, expected = decoder(), decoder()
    eight = AdamW8bit(found.parameters(), lr=5e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    plain = torch.optim.AdamW(expected.parameters(), lr=5e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ours, theirs = trained(found, eight, rows, steps=range(80)), trained(expected, plain, rows, steps=range(80))
    assert theirs[-1] < 0.6 * theirs[0]
    assert np.abs(np.array(ours) - np.array(theirs))[:20].max() < 0.02
    assert np.mean(ours[-20:]) == pytest.approx(np.mean(theirs[-20:]), rel=0.03)
    assert state_bytes(eight) < 0.3 * state_bytes(plain)


def test_vectors_move_exactly_as_with_32_bits() -> None:
    torch.manual_seed(0)
    found = nn.Parameter(torch.randn(50))
    expected = nn.Parameter(found.detach().clone())
    eight = AdamW8bit([found], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    plain = torch.optim.AdamW([expected], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for _ in range(10):
        found.grad = torch.randn(50)
        expected.grad = found.grad.clone()
        eight.step()
        plain.step()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_keeps_every_bit(rows: Path, tmp_path: Path) -> None:
    def fresh() -> tuple[Decoder, AdamW8bit]:
        model = decoder()
        return model, AdamW8bit(model.parameters(), lr=5e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    whole, optimizer = fresh()
    trained(whole, optimizer, rows, steps=range(4))
    weights, moments = get_state_dict(whole, optimizer)
    state_dict_saver.save({"model": weights, "optimizer": moments}, checkpoint_id=tmp_path, no_dist=True)
    losses = trained(whole, optimizer, rows, steps=range(4, 8))

    resumed, optimizer = fresh()
    weights, moments = get_state_dict(resumed, optimizer)
    state_dict_loader.load({"model": weights, "optimizer": moments}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(resumed, optimizer, model_state_dict=weights, optim_state_dict=moments)
    assert trained(resumed, optimizer, rows, steps=range(4, 8)) == losses
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.uint8, torch.float32}
