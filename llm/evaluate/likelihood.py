"""How well a model predicts text: nats per token, and bits per byte, which any two tokenizers can be compared by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from llm.data.document import Document, read_shards
from llm.data.rows import IGNORED, Rows
from llm.data.tokenizer import Tokenizer
from llm.errors import DataError
from llm.model.decoder import Decoder


def held_out(deduped: Path, *, limit: int | None = None) -> list[Document]:
    """The test split in file order; with a limit, those whose ids have the smallest sha256, whatever their order."""
    documents = list(read_shards(deduped, "test"))
    if limit is None or len(documents) <= limit:
        return documents
    chosen = set(sorted(hashlib.sha256(document.id.encode()).hexdigest() for document in documents)[:limit])
    return [document for document in documents if hashlib.sha256(document.id.encode()).hexdigest() in chosen]


@dataclass(frozen=True)
class Stream:
    """Documents as one run of tokens, bos … eos bos … eos, and the books to score it by.

    Position p of `domains` says which domain token p + 1 is charged to: an index into `names`, or -1 for a bos,
    which nobody is asked to predict.
    """

    tokens: np.ndarray
    domains: np.ndarray
    names: tuple[str, ...]
    text_bytes: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, documents: Iterable[Document]) -> Stream:
        """Raises: DataError if there is no document."""
        pieces: list[np.ndarray] = []
        text_bytes: dict[str, int] = {}
        owners: list[str] = []
        for document in documents:
            pieces.append(np.array(tokenizer.document_ids(document.text), dtype=np.int64))
            text_bytes[document.domain] = text_bytes.get(document.domain, 0) + len(document.text.encode())
            owners.append(document.domain)
        if not pieces:
            raise DataError("no test document to score", remedy="raise dedup.test_share")
        names = tuple(sorted(text_bytes))
        domains = np.repeat([names.index(owner) for owner in owners], [len(piece) for piece in pieces])
        domains[np.cumsum([0, *(len(piece) for piece in pieces[:-1])])] = -1
        return cls(np.concatenate(pieces), domains[1:], names, tuple(text_bytes[name] for name in names))

    def tally(self, nats: np.ndarray) -> dict[str, Any]:
        """Scores overall and per domain from the nats of each token after the first."""
        counted = self.domains >= 0
        tokens = np.bincount(self.domains[counted], minlength=len(self.names))
        sums = np.bincount(self.domains[counted], weights=nats[counted], minlength=len(self.names))
        by_domain = {
            name: figures(float(total), int(count), size)
            for name, total, count, size in zip(self.names, sums, tokens, self.text_bytes, strict=True)
        }
        return figures(float(sums.sum()), int(tokens.sum()), sum(self.text_bytes)) | {"by_domain": by_domain}


def figures(nats: float, tokens: int, text_bytes: int) -> dict[str, Any]:
    """Loss in nats per token, perplexity, and bits per byte of UTF-8 text.

    Bits per byte divides by the text and not by the tokens, so a coarser vocabulary gains nothing.

    Source: The Pile, https://arxiv.org/abs/2101.00027, section 3.1.
    Raises: DataError if the texts are empty.
    """
    if not text_bytes:
        raise DataError("test documents hold no text", value="0 bytes", remedy="raise clean.min_characters")
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # exp overflows a float just above 709
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "tokens": tokens,
        "bytes": text_bytes,
    }


def score(model: Decoder, tokenizer: Tokenizer, documents: Iterable[Document], *, row_tokens: int, batch_rows: int = 16) -> dict[str, Any]:
    """Loss, perplexity and bits per byte of the model on these documents, overall and per domain.

    Every document token and its eos is predicted exactly once, from at most `row_tokens` tokens before it; a bos
    never counts. Rows are cut as in training, so the first tokens of a row have little context and the figure is
    an upper bound.
    """
    stream = Stream.of(tokenizer, documents)
    return stream.tally(token_nats(model, stream.tokens, row_tokens=row_tokens, batch_rows=batch_rows))


def token_nats(model: Decoder, tokens: np.ndarray, *, row_tokens: int, batch_rows: int) -> np.ndarray:
    """-ln p of each token after the first, in float64.

    Row i reads tokens i·T … i·T + T - 1 and predicts the ones that follow each; the last row is padded on its
    right, where nothing real can look.
    """
    targets = len(tokens) - 1
    rows = -(-targets // row_tokens)
    padded = np.zeros(rows * row_tokens + 1, dtype=np.int64)
    padded[: len(tokens)] = tokens
    inputs, following = padded[:-1].reshape(rows, row_tokens), padded[1:].reshape(rows, row_tokens)
    batches = [slice(first, first + batch_rows) for first in range(0, rows, batch_rows)]
    return np.concatenate([_nats(model, inputs[batch], following[batch]).ravel() for batch in batches])[:targets]


def answer_loss(model: Decoder, folder: Path, split: str, *, batch_rows: int = 16) -> float:
    """Mean nats per answer token that the masks of a chat split count.

    Raises: DataError if the split counts no token.
    """
    rows = Rows.open(folder, split)
    total, counted = 0.0, 0
    for first in range(0, len(rows), batch_rows):
        inputs, targets = rows.batch(np.arange(first, min(first + batch_rows, len(rows))))
        total += float(_nats(model, inputs, targets).sum())
        counted += int((targets != IGNORED).sum())
    if not counted:
        raise DataError("no answer to score", value=f"split {split} counts 0 tokens", remedy="raise dedup.test_share")
    return total / counted


@torch.inference_mode()
def _nats(model: Decoder, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-ln p of each target, 0 where a target doesn't count, in float64 and the shape of the targets."""
    device = next(model.parameters()).device
    logits_BTV, _ = model(torch.from_numpy(inputs).to(device))
    following = torch.from_numpy(targets).to(device)
    nats = F.cross_entropy(logits_BTV.float().flatten(0, 1), following.flatten(), reduction="none", ignore_index=IGNORED)
    return nats.double().cpu().numpy().reshape(targets.shape)
