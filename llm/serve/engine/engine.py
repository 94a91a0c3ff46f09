"""Text generation with an exported model: onnxruntime for logits, numpy for choices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.serve.engine.session import Session
from llm.serve.engine.text import TextStream, piece_bytes
from llm.serve.models.folder import open_folder


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 takes the likeliest, and top_k 0 leaves all of them in."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """A token, its log-probability (None for a first token) and the likeliest alternatives."""

    id: int
    logprob: float | None
    top: dict[int, float]


@dataclass(frozen=True)
class Chunk:
    """Text that became showable with one token; the last chunk says why it is the last."""

    text: str
    token: Scored | None = None
    finish_reason: str | None = None


class Engine:
    """One model, shared by all requests; every generation owns its cache."""

    def __init__(self, folder: Path, *, model_id: str, threads: int = 0) -> None:
        self.model_id = model_id
        self.facts = open_folder(folder)
        self.tokenizer = Tokenizer.load(self.facts.path)
        self.pieces = piece_bytes(self.tokenizer)
        self._session = Session(self.facts, threads=threads)

    def text(self, ids: list[int]) -> str:
        """What these ids say; ids that are no text say nothing."""
        return b"".join(self.pieces[id] or b"" for id in ids).decode("utf-8", "replace")

    def token_name(self, id: int) -> str:
        """A token as reports show it: its text, the name of a control token, or `bytes:` and half a character."""
        piece = self.pieces[id]
        if piece is None:
            return self.tokenizer.vocabulary.piece(id)
        shown = piece.decode("utf-8", "replace")
        return f"bytes:\\x{piece.hex()}" if shown == "\ufffd" else shown

    def generate(self, prompt: list[int], sampling: Sampling, *, top: int = 0) -> Iterator[Chunk]:
        """Chunks as tokens come. Whoever stops asking stops the generation.

        Any id that is no text (end of document, end of answer, a new turn) ends it.
        """
        rng = np.random.default_rng(sampling.seed)
        stream = TextStream(sampling.stop)
        fresh, cache = prompt, self._session.empty_cache()
        for _ in range(sampling.max_tokens):
            logits, cache = self._session.run(np.array([fresh]), cache)
            id = sample(logits[0, -1], sampling, rng)
            piece = self.pieces[id]
            if piece is None:
                yield Chunk(stream.finish(), finish_reason="stop")
                return
            yield Chunk(stream.push(piece), score(logits[0, -1], id, top), "stop" if stream.stopped else None)
            if stream.stopped:
                return
            fresh = [id]
        yield Chunk(stream.finish(), finish_reason="length")

    def score_prompt(self, prompt: list[int], *, top: int) -> list[Scored]:
        """How likely each token of the prompt was after those before it."""
        logits, _ = self._session.run(np.array([prompt]), self._session.empty_cache())
        return [Scored(prompt[0], None, {}), *(score(row, id, top) for row, id in zip(logits[0], prompt[1:], strict=False))]


def sample(logits_V: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One id: the likeliest, or drawn from the top_k likeliest and of those from the fewest that hold top_p.

    Source: top-k, https://arxiv.org/abs/1805.04833; nucleus, https://arxiv.org/abs/1904.09751.
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    order = np.argsort(-logits_V, kind="stable")[: sampling.top_k or None]
    scaled = logits_V[order].astype(np.float64)
    weights = np.exp((scaled - scaled[0]) / sampling.temperature)
    shares = weights / weights.sum()
    shares = shares[shares.cumsum() - shares < sampling.top_p]
    return int(order[rng.choice(len(shares), p=shares / shares.sum())])


def score(logits_V: np.ndarray, id: int, top: int) -> Scored:
    """The token's log-probability in nats, at temperature 1, and the `top` likeliest."""
    shifted = logits_V.astype(np.float64) - logits_V.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-logprobs, kind="stable")[:top]
    return Scored(id, float(logprobs[id]), {int(other): float(logprobs[other]) for other in best})
