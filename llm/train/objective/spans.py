"""Span corruption: missing spans, written one after another.

Source: T5, https://arxiv.org/abs/1910.10683, section 3.1.4; random lengths as its released code draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.data.rows import IGNORED, Rows
from llm.errors import RecipeError
from llm.train.batch import Batch
from llm.train.objective import lengths
from llm.train.objective.config import SpansConfig
from llm.train.objective.draws import uniform
from llm.train.objective.next_token import token_terms

EOS, START = 2, 0  # the decoder begins with the padding id, as T5 does
NOISE, REST = 10, 11  # purposes of draws


class Spans:
    """Cross-entropy in nats of sentinels and missing spans, given the rest of the row.

    An encoder–decoder reads the rest on one side and writes on the other; a decoder reads and writes one sequence,
    of which only the written part counts.
    """

    weights: Mapping[str, float] = {"loss": 1.0}

    def __init__(self, config: SpansConfig, vocab_size: int, *, row_tokens: int, encoder_decoder: bool) -> None:
        self.config, self.encoder_decoder = config, encoder_decoder
        self.noise_tokens, self.spans = lengths.spans(config, row_tokens)
        if self.spans > config.sentinels:
            raise RecipeError(
                "a row has more missing spans than sentinels",
                value=self.spans,
                remedy="set train.objective.sentinels or mean_span_tokens higher",
            )
        self.extra_ids = config.sentinels
        self.sentinels = vocab_size + config.sentinels - 1 - np.arange(self.spans)  # the first is the last id, as in T5

    def batch(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> Batch:
        """These rows without their missing spans, and the spans to be written."""
        tokens_BT, _ = rows.batch(indices)
        lengths = zip(*self.lengths(tokens_BT.shape[1], places, seed), strict=True)
        cut = [self.corrupt(row, kept, gone) for row, (kept, gone) in zip(tokens_BT, lengths, strict=True)]
        read_BS, written_BT = (np.stack(parts) for parts in zip(*cut, strict=True))
        if self.encoder_decoder:
            shifted_BT = np.concatenate((np.full((len(written_BT), 1), START), written_BT[:, :-1]), axis=1)
            inputs = {"tokens_BS": torch.from_numpy(read_BS), "decoder_tokens_BT": torch.from_numpy(shifted_BT)}
            return Batch(inputs, torch.from_numpy(written_BT), {})
        whole_BT = np.concatenate((read_BS, written_BT), axis=1)
        targets_BT = np.concatenate((np.full((len(read_BS), read_BS.shape[1] - 1), IGNORED), written_BT), axis=1)
        return Batch({"tokens_BT": torch.from_numpy(whole_BT[:, :-1])}, torch.from_numpy(targets_BT), {})

    def lengths(self, T: int, places: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lengths of kept and of missing spans, by turns, of each row; each B, spans."""
        kept = cuts(places, T - self.noise_tokens, self.spans, seed=seed, purpose=REST)
        return kept, cuts(places, self.noise_tokens, self.spans, seed=seed, purpose=NOISE)

    def corrupt(
        self, row_T: NDArray[np.int64], kept: NDArray[np.int64], gone: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What is read, with a sentinel for each missing span, and what is written, each span behind its sentinel; both end with EOS."""
        borders = np.stack((kept, gone), axis=1).ravel().cumsum()[:-1]
        pieces = np.split(row_T, borders)
        read = [part for sentinel, piece in zip(self.sentinels, pieces[::2], strict=True) for part in (piece, [sentinel])]
        written = [part for sentinel, piece in zip(self.sentinels, pieces[1::2], strict=True) for part in ([sentinel], piece)]
        return np.concatenate((*read, [EOS])).astype(np.int64), np.concatenate((*written, [EOS])).astype(np.int64)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Written tokens."""
        return {"loss": batch.counted}

    def sums(self, model: Any, batch: Batch, *, z_loss: bool = False) -> dict[str, Tensor]:
        """Summed nats of what is written."""
        return token_terms(model, model.features(**batch.inputs), batch.targets_BT, z_loss=z_loss)


def cuts(places: NDArray[np.int64], total: int, parts: int, *, seed: int, purpose: int) -> NDArray[np.int64]:
    """For each place, `parts` lengths of at least 1 that add up to `total`, every such list equally likely."""
    order = uniform(places, total - 1, seed=seed, purpose=purpose).argsort(axis=1)[:, : parts - 1] + 1
    borders = np.sort(order, axis=1)
    edges = np.concatenate((np.zeros((len(places), 1), np.int64), borders, np.full((len(places), 1), total)), axis=1)
    return np.diff(edges, axis=1)
