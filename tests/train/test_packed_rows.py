from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.packing import Numbers, Pieces, alone, best_fit, write_mask, write_tokens
from llm.data.rows import BOS, Rows
from llm.model import families
from llm.model.config import parse_model
from llm.train.objective.next_token import NextToken

ROW_TOKENS, VOCAB_SIZE, EOS = 24, 60, 2
SIZES = {"width": 16, "num_layers": 2, "num_heads": 4, "ffn_width": 32, "max_positions": ROW_TOKENS}
MODELS = {"decoder": {"num_kv_heads": 2}, "gpt2": {}}


def nats(model: torch.nn.Module, documents: list[np.ndarray], lay: Callable[[Numbers, int], Pieces], folder: Path) -> tuple[float, int]:
    """Summed loss of the documents in rows laid like this, and how many targets count."""
    pieces = lay(np.array([len(document) for document in documents]), ROW_TOKENS)
    write_tokens(folder / "tokens", pieces, ROW_TOKENS, "<u2", EOS, lambda document, start, end: documents[document][start:end])
    write_mask(folder / "mask", pieces, ROW_TOKENS)
    rows = Rows(np.fromfile(folder / "tokens", "<u2"), np.fromfile(folder / "mask", "u1"), ROW_TOKENS, VOCAB_SIZE)
    objective, numbers = NextToken(document_mask=True), np.arange(len(rows))
    batch = objective.batch(rows, numbers, numbers, 0)
    return objective.sums(model, batch)["loss"].item(), batch.counted


@pytest.mark.parametrize("architecture", MODELS)
def test_a_document_learns_in_a_shared_row_what_it_learns_alone(architecture: str, tmp_path: Path) -> None:
    """Behind the document mask, with positions that begin anew where the model has any."""
    random = np.random.default_rng(0)
    documents = [np.array([BOS, *random.integers(3, VOCAB_SIZE, length), EOS]) for length in random.integers(1, 20, 30)]
    torch.manual_seed(0)
    model = families.build(parse_model({"architecture": architecture} | SIZES | MODELS[architecture]), VOCAB_SIZE).double()
    together, counted = nats(model, documents, best_fit, tmp_path)
    apart, each_counted = nats(model, documents, alone, tmp_path)
    assert counted == each_counted == sum(len(document) - 1 for document in documents)
    assert together == pytest.approx(apart, rel=1e-10)
