"""What only the whole corpus, or the user's examples, can tell: looked for in the repaired shards, between the passes of clean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.data import labelled
from llm.data.config import CleanConfig, LabelledSet
from llm.data.document import write_json_lines
from llm.data.filters import contamination, examples, learned, lexicon, triggers
from llm.data.filters.rulings import Rulings, merged
from llm.data.parts import Piece, Workshop


@dataclass(frozen=True)
class Survey:
    """Rulings for each shard, and what there is to report."""

    rulings: list[Rulings]
    counts: dict[str, Any] = field(default_factory=dict)
    phrases: list[dict[str, Any]] = field(default_factory=list)
    overlaps: contamination.Overlaps | None = None


def snapshot(config: CleanConfig, sets: Sequence[LabelledSet]) -> dict[str, Any]:
    """What changes when the user's examples, lists of words or evaluation sets do."""
    learners = {"classifier": config.classifier, "fluency": config.fluency}
    sources = {name: [*learner.good, *getattr(learner, "bad", ())] for name, learner in learners.items() if learner}
    return {
        **{name: examples.snapshot(each) for name, each in sources.items()},
        "lexicons": [lexicon.load(each.path).sha256() for each in config.lexicons],
        "sets": [labelled.snapshot(each) for each in sets],
    }


def survey(pieces: Sequence[Piece], config: CleanConfig, sets: Sequence[LabelledSet], workshop: Workshop) -> Survey:
    """Asks all that the recipe switches on; of several that drop a document the first says why."""
    rulings, counts = [[Rulings() for _ in pieces]], dict[str, Any]()
    phrases, overlaps = list[dict[str, Any]](), None
    if sets and config.contamination.action != "off":
        overlaps = contamination.scan(pieces, sets, config.contamination, workshop)
        rulings.append(contamination.rulings(overlaps, config.contamination))
    if config.triggers.action != "off":
        found, phrases = triggers.scan(pieces, config.triggers, workshop)
        rulings.append(found)
        counts["suspicious_phrases"] = len(phrases)
    if config.classifier:
        found, counts["classifier"] = learned.by_classifier(pieces, config.classifier, config.repair, workshop)
        rulings.append(found)
    if config.fluency:
        found, counts["fluency"] = learned.by_fluency(pieces, config.fluency, config.repair, workshop)
        rulings.append(found)
    return Survey([merged(shard) for shard in zip(*rulings, strict=True)], counts, phrases, overlaps)


def last_rulings(kept: Sequence[Piece], config: CleanConfig, sets: Sequence[LabelledSet], workshop: Workshop) -> list[Rulings]:
    """Drops what shares a run with an evaluation set only since cleaning took out what stood in between."""
    if not sets or config.contamination.action not in ("drop", "cut"):
        return [Rulings() for _ in kept]
    found = contamination.scan(kept, sets, config.contamination, workshop)
    return contamination.rulings(found, config.contamination.model_copy(update={"action": "drop"}))


def report(
    survey: Survey, kept: Sequence[Piece], config: CleanConfig, sets: Sequence[LabelledSet], workshop: Workshop, out: Path
) -> dict[str, Any]:
    """Writes `triggers.jsonl` and, with evaluation sets, `contamination.json`, which looks again at what was kept; the counts."""
    write_json_lines(out / "triggers.jsonl", survey.phrases)
    counts = dict(survey.counts)
    if survey.overlaps:
        after = contamination.scan(kept, sets, config.contamination, workshop)
        counts["contamination"] = contamination.report(survey.overlaps, after)
        write_json(out / "contamination.json", counts["contamination"])
    return counts
