"""Score a trained model on test text, against a baseline, and let it write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm.artifact import write_json
from llm.data.template import Turn, prompt_ids
from llm.data.tokenizer import Tokenizer
from llm.evaluate.config import EvaluateConfig
from llm.evaluate.kneser_ney import KneserNey
from llm.evaluate.likelihood import Stream, answer_loss, held_out, token_nats
from llm.model.decoder import Decoder
from llm.model.generate import generate
from llm.model.weights import load


def evaluate(
    trained: Path,
    tokenized: Path,
    deduped: Path,
    out: Path,
    config: EvaluateConfig,
    *,
    seed: int,
    base: Path | None = None,
    chat: Path | None = None,
) -> dict[str, Any]:
    """Write `scores.json` and `samples.json`; with a folder of chat rows and the base model, score the answers too."""
    model, tokenizer = _on_device(load(trained)), Tokenizer.load(tokenized)
    rows = json.loads((tokenized / "rows.json").read_text(encoding="utf-8"))
    documents = held_out(deduped, limit=config.max_documents)
    stream = Stream.of(tokenizer, documents)
    nats = token_nats(model, stream.tokens, row_tokens=rows["row_tokens"], batch_rows=config.batch_rows)
    scores = {"documents": len(documents), **stream.tally(nats), "baseline": {"kneser_ney": baseline(tokenized, rows, stream)}}
    if base and chat:
        scores |= answers(model, _on_device(load(base)), chat, batch_rows=config.batch_rows)
    write_json(out / "scores.json", scores)
    write_json(out / "samples.json", samples(model, tokenizer, config, seed=seed, chat=chat is not None))
    return scores


def _on_device(model: Decoder) -> Decoder:
    """The model in float32 on the accelerator, where there is one."""
    return model.float().to("cuda" if torch.cuda.is_available() else "cpu")


def baseline(tokenized: Path, rows: dict[str, Any], stream: Stream) -> dict[str, Any]:
    """Scores of a Kneser–Ney bigram that has seen every training token."""
    train = np.memmap(tokenized / "train.tokens", dtype=rows["dtype"], mode="r")
    return stream.tally(KneserNey.fit(train, rows["vocab_size"]).nats(stream.tokens))


def answers(tuned: Decoder, base: Decoder, chat: Path, *, batch_rows: int) -> dict[str, float]:
    """Loss on held-out answers: tuned, before tuning, and tuned with each answer under another one's question.

    A tuned model that is no better than with shuffled questions has learned what answers look like, and reads
    no question.
    """
    return {
        "answer_loss": answer_loss(tuned, chat, "test", batch_rows=batch_rows),
        "answer_loss_base": answer_loss(base, chat, "test", batch_rows=batch_rows),
        "answer_loss_shuffled": answer_loss(tuned, chat, "test-shuffled", batch_rows=batch_rows),
    }


def samples(model: Decoder, tokenizer: Tokenizer, config: EvaluateConfig, *, seed: int, chat: bool) -> list[dict[str, str]]:
    """What the model writes after each fixed prompt, or answers to it."""
    stop_ids = (tokenizer.eos, tokenizer.end)
    written = []
    for prompt in config.chat_prompts if chat else config.prompts:
        ids = prompt_ids(tokenizer, [Turn("user", prompt)]) if chat else [tokenizer.bos, *tokenizer.encode(prompt)]
        text_ids = generate(model, ids, config.sample_tokens, stop_ids, config.temperature, config.top_k, seed)
        written.append({"prompt": prompt, "text": tokenizer.decode(text_ids)})
    return written
