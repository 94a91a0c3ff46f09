"""Register an exported model, and make it champion if it is not worse than the present one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.evaluate.config import PromoteConfig
from llm.evaluate.gate import Decision, decide
from llm.registry import Registry, Version


def promote(
    exported: Path,
    evaluated: Path,
    tokenized: Path,
    deduped: Path,
    out: Path,
    config: PromoteConfig,
    *,
    registry: Registry,
    name: str,
    digest: str,
    lineage: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `decision.json`: the version that the export got, whether it is champion now, and why.

    The registry is held from the look at the champion to its replacement, so that of two candidates that finish
    together the second is compared with the first.

    Raises: PromotionError if the champion can't be scored again.
    """
    scores = json.loads((evaluated / "scores.json").read_text(encoding="utf-8"))
    row_tokens = json.loads((tokenized / "rows.json").read_text(encoding="utf-8"))["row_tokens"]
    metrics = {key: value for key, value in scores.items() if isinstance(value, float)} | {"row_tokens": float(row_tokens)}
    with registry.deciding():
        before = registry.champion(name)
        version = registry.add_candidate(name, exported, digest=digest, metrics=metrics, lineage=lineage)
        decision, champion_score = _judge(version, before, scores, deduped, config)
        if decision.champion:
            registry.promote(name, version.number)
    record = {
        "model": name,
        "version": version.number,
        "champion": decision.champion,
        "champion_before": before.number if before else None,
        "candidate_bits_per_byte": scores["bits_per_byte"],
        "champion_bits_per_byte": champion_score,
        "reason": decision.reason,
    }
    write_json(out / "decision.json", record)
    return record


def _judge(
    version: Version, before: Version | None, scores: Mapping[str, Any], deduped: Path, config: PromoteConfig
) -> tuple[Decision, float | None]:
    """The decision and the champion's score on the candidate's documents."""
    if before and before.digest == version.digest:
        return Decision(True, "already the champion"), float(scores["bits_per_byte"])
    if version.rolled_back:
        return Decision(False, f"was rolled back; by hand: trainyard promote {version.name} {version.number}"), None
    champion = rescore(before, deduped, documents=scores["documents"]) if before else None
    return decide(scores["bits_per_byte"], champion, tolerance_bits_per_byte=config.tolerance_bits_per_byte), champion


def rescore(champion: Version, deduped: Path, *, documents: int) -> float:
    """Bits per byte of a registered export on the same test documents, with its own tokenizer and row length.

    torch is imported here, because a candidate that is the champion already needs no score.

    Raises: PromotionError if its files are gone or are not those that were registered.
    """
    from llm.data.tokenizer import Tokenizer
    from llm.evaluate.likelihood import held_out, score
    from llm.model.origin import load

    champion.verify("bring its files back, or go back: trainyard promote --rollback " + champion.name)
    folder = champion.path / "huggingface"
    if not folder.is_dir():  # no class of transformers computes this model
        folder = champion.path / "weights"
    model, tokenizer = load(folder), Tokenizer.load(folder)
    texts = held_out(deduped, limit=documents)
    scored = score(model, tokenizer, texts, row_tokens=int(champion.metrics["row_tokens"]))
    return float(scored["bits_per_byte"])
