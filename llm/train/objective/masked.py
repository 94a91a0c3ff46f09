"""Masked tokens, with optional next-sentence prediction: what encoders learn by.

Source: BERT, https://arxiv.org/abs/1810.04805, section 3.1 and appendix A.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm.data.rows import IGNORED, Rows
from llm.train.batch import Batch
from llm.train.objective.config import MaskedConfig
from llm.train.objective.draws import integers, uniform
from llm.train.objective.next_token import documents, token_terms

SPECIAL_IDS = 3  # unknown, begin and end of a document: never hidden
PICK, FATE, REPLACEMENT, STRANGE, STRANGER = range(5)  # purposes of draws


class Masked:
    """Cross-entropy in nats of hidden tokens, and of whether the second half of a row follows the first."""

    def __init__(self, config: MaskedConfig, vocab_size: int, *, document_mask: bool = False) -> None:
        self.config, self.vocab_size, self.document_mask = config, vocab_size, document_mask
        self.mask_id = vocab_size if config.mask_id is None else config.mask_id
        self.extra_ids = 1 if config.mask_id is None else 0
        self.weights: Mapping[str, float] = {"loss": 1.0} | ({"next_sentence": 1.0} if config.next_sentence else {})

    def batch(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> Batch:
        """These rows with a share of their tokens hidden."""
        tokens_BT, _ = rows.batch(indices)
        sentences: dict[str, Tensor] = {}
        if self.config.next_sentence:
            tokens_BT, strange_B = with_strangers(rows, tokens_BT, places, seed)
            half = tokens_BT.shape[1] // 2
            segments_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]) >= half, tokens_BT.shape).astype(np.int64)
            sentences = {"segments_BT": torch.from_numpy(segments_BT)}
        picked_BT = pick(tokens_BT, places, self.config.share, seed)
        shown_BT = self.hide(tokens_BT, picked_BT, places, seed)
        targets_BT = np.where(picked_BT, tokens_BT, IGNORED)
        inputs = {
            "tokens_BT": torch.from_numpy(shown_BT),
            **sentences,
            **documents(torch.from_numpy(tokens_BT), rows.bos, wanted=self.document_mask),
        }
        extra = {"strange_B": torch.from_numpy(strange_B)} if self.config.next_sentence else {}
        return Batch(inputs, torch.from_numpy(targets_BT), extra)

    def hide(self, tokens_BT: NDArray[np.int64], picked_BT: NDArray[np.bool_], places: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Picked tokens behind the mask, or any other token in their place, or themselves."""
        T = tokens_BT.shape[1]
        fate_BT = uniform(places, T, seed=seed, purpose=FATE)
        any_BT = SPECIAL_IDS + integers(places, T, self.vocab_size - SPECIAL_IDS, seed=seed, purpose=REPLACEMENT)
        masked_BT = picked_BT & (fate_BT < self.config.mask_share)
        random_BT = picked_BT & ~masked_BT & (fate_BT < self.config.mask_share + self.config.random_share)
        return np.where(masked_BT, self.mask_id, np.where(random_BT, any_BT, tokens_BT))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Hidden tokens, and rows."""
        return {"loss": batch.counted, "next_sentence": len(batch.targets_BT)}

    def sums(self, model: Any, batch: Batch, *, z_loss: bool = False) -> dict[str, Tensor]:
        """Summed nats of both heads."""
        if not self.config.next_sentence:
            return token_terms(model, model.features(**batch.inputs), batch.targets_BT, z_loss=z_loss)
        x_BTD = model.encode(**batch.inputs)
        nats = F.cross_entropy(model.follows(x_BTD).float(), batch.extra["strange_B"], reduction="sum")
        return {**token_terms(model, model.transform(x_BTD), batch.targets_BT, z_loss=z_loss), "next_sentence": nats}


def pick(tokens_BT: NDArray[np.int64], places: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """The tokens that are to be told: each with the same chance, special ones never."""
    return (uniform(places, tokens_BT.shape[1], seed=seed, purpose=PICK) < share) & (tokens_BT >= SPECIAL_IDS)


def with_strangers(
    rows: Rows, tokens_BT: NDArray[np.int64], places: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of which half have the second half of another row; 1 for those."""
    strange_B = (uniform(places, 1, seed=seed, purpose=STRANGE)[:, 0] < 0.5).astype(np.int64)
    strangers_BT, _ = rows.batch(integers(places, 1, len(rows), seed=seed, purpose=STRANGER)[:, 0])
    half = tokens_BT.shape[1] // 2
    second = np.where(strange_B[:, None] == 1, strangers_BT[:, half:], tokens_BT[:, half:])
    return np.concatenate((tokens_BT[:, :half], second), axis=1), strange_B
