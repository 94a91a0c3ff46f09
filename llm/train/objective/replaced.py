"""Replaced-token detection: a small generator fills gaps in, a discriminator tells which tokens aren't the original ones.

Source: ELECTRA, https://arxiv.org/abs/2003.10555, section 2.
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
from llm.train.objective.config import ReplacedConfig
from llm.train.objective.draws import uniform
from llm.train.objective.masked import SPECIAL_IDS, pick
from llm.train.objective.next_token import documents, token_terms

SAMPLE = 20  # purpose of a draw


class Replaced:
    """The generator's cross-entropy of hidden tokens, and the discriminator's of original or replaced, over every token."""

    def __init__(self, config: ReplacedConfig, vocab_size: int, *, document_mask: bool = False) -> None:
        self.config, self.document_mask = config, document_mask
        self.mask_id = vocab_size if config.mask_id is None else config.mask_id
        self.extra_ids = 1 if config.mask_id is None else 0
        self.weights: Mapping[str, float] = {"loss": 1.0, "replaced": config.discriminator_weight}

    def batch(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> Batch:
        """These rows with gaps, and the draws by which the generator's opinion becomes a token."""
        tokens_BT, _ = rows.batch(indices)
        picked_BT = pick(tokens_BT, places, self.config.share, seed)
        shown_BT = torch.from_numpy(np.where(picked_BT, self.mask_id, tokens_BT))
        draws_BT = torch.from_numpy(uniform(places, tokens_BT.shape[1], seed=seed, purpose=SAMPLE))
        original_BT = torch.from_numpy(np.ascontiguousarray(tokens_BT))
        inputs = {"tokens_BT": shown_BT, **documents(original_BT, rows.bos, wanted=self.document_mask)}
        targets_BT = torch.from_numpy(np.where(picked_BT, tokens_BT, IGNORED))
        return Batch(inputs, targets_BT, {"original_BT": original_BT, "draws_BT": draws_BT})

    def counts(self, batch: Batch) -> dict[str, int]:
        """Gaps, and tokens."""
        return {"loss": batch.counted, "replaced": int((batch.extra["original_BT"] >= SPECIAL_IDS).sum())}

    def sums(self, model: Any, batch: Batch, *, z_loss: bool = False) -> dict[str, Tensor]:
        """Summed nats of both nets; no gradient flows through the sampled tokens."""
        original_BT, picked_BT = batch.extra["original_BT"], batch.targets_BT != IGNORED
        others = {name: tensor for name, tensor in batch.inputs.items() if name != "tokens_BT"}
        x_BTD = model.features(**batch.inputs)
        filled_BT = original_BT.clone()
        with torch.no_grad():
            filled_BT[picked_BT] = sampled(model.head(x_BTD[picked_BT]), batch.extra["draws_BT"][picked_BT])
        scores_BT = model(tokens_BT=filled_BT, **others)
        replaced_BT = (filled_BT != original_BT).float()
        nats_BT = F.binary_cross_entropy_with_logits(scores_BT.float(), replaced_BT, reduction="none")
        return {
            **token_terms(model, x_BTD, batch.targets_BT, z_loss=z_loss),
            "replaced": (nats_BT * (original_BT >= SPECIAL_IDS)).sum(),
        }


def sampled(logits_NV: Tensor, draws_N: Tensor) -> Tensor:
    """One id per row, drawn by its number in [0, 1) from softmax(logits): where the summed chances pass it."""
    sums_NV = torch.softmax(logits_NV.double(), dim=-1).cumsum(dim=-1)
    return torch.searchsorted(sums_NV, (draws_N.to(sums_NV) * sums_NV[:, -1])[:, None]).squeeze(1).clamp(max=logits_NV.shape[1] - 1)
