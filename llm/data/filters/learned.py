"""Verdicts that were learned from the user's examples: models are trained once, score every shard, and thresholds decide."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.data.document import Verdict, read_shards
from llm.data.filters import characters
from llm.data.filters.classifier import Classifier, train
from llm.data.filters.config import ClassifierConfig, FluencyConfig
from llm.data.filters.examples import identity, texts
from llm.data.filters.rulings import Rulings
from llm.data.parts import Part, Piece, Workshop
from llm.data.quality.config import RepairConfig

BATCH_DOCUMENTS = 256

Score = tuple[str, float]


def by_classifier(
    pieces: Sequence[Piece], config: ClassifierConfig, repair: RepairConfig, workshop: Workshop
) -> tuple[list[Rulings], dict[str, Any]]:
    """What the classifier drops of each shard, with the probability of being good; how well it tells the examples apart."""
    examples = Piece(None, [identity(config.good, repair), identity(config.bad, repair)])
    shape = config.model_dump(mode="json", include={"max_examples", "max_characters", "folds"})
    (model,) = workshop.made("classifier", partial(train_classifier, config, repair), [examples], settings=shape)
    scores = _scores(workshop, "classified", partial(classify_shard, config), pieces, model, shape["max_characters"])
    threshold = config.min_probability
    if config.keep_share is not None:
        threshold = best([score for shard in scores for _, score in shard], config.keep_share)
    return [_drops(shard, "low_quality", lambda score: score < threshold) for shard in scores], {**model.counts, "threshold": threshold}


def by_fluency(
    pieces: Sequence[Piece], config: FluencyConfig, repair: RepairConfig, workshop: Workshop
) -> tuple[list[Rulings], dict[str, Any]]:
    """What the model of characters drops of each shard, with its bits per byte."""
    examples = Piece(None, identity(config.good, repair))
    shape = config.model_dump(mode="json", include={"order", "max_bytes", "max_characters"})
    (model,) = workshop.made("characters", partial(count_characters, config, repair), [examples], settings=shape)
    scores = _scores(workshop, "fluency", partial(measure_shard, config), pieces, model, config.max_characters)
    return [_drops(shard, "not_fluent", lambda score: score > config.max_bits_per_byte) for shard in scores], dict(model.counts)


def train_classifier(config: ClassifierConfig, repair: RepairConfig, _: None, out: Path) -> dict[str, Any]:
    """Writes `model.npz`."""
    limits = {"max_examples": config.max_examples, "max_characters": config.max_characters}
    good, bad = (texts(side, repair, **limits) for side in (config.good, config.bad))
    classifier, counts = train(good, bad, config.folds)
    classifier.save(out / "model.npz")
    return counts


def count_characters(config: FluencyConfig, repair: RepairConfig, _: None, out: Path) -> dict[str, Any]:
    """Writes `model.npz`."""
    most = 1 + config.max_bytes // config.max_characters
    good = texts(config.good, repair, max_examples=10 * most, max_characters=config.max_characters)
    characters.CharacterModel.fit(good, config.order, config.max_bytes).save(out / "model.npz")
    return {"examples": len(good)}


def classify_shard(config: ClassifierConfig, value: tuple[str, str], out: Path) -> dict[str, Any]:
    """Writes `scores.json`: of each document its probability of being good."""
    shard, model = value
    classifier = Classifier.load(Path(model))
    return _write_scores(out, shard, config.max_characters, lambda texts: classifier.probabilities(texts).round(6).tolist())


def measure_shard(config: FluencyConfig, value: tuple[str, str], out: Path) -> dict[str, Any]:
    """Writes `scores.json`: of each document its bits per byte."""
    shard, path = value
    model = characters.CharacterModel.load(Path(path))
    return _write_scores(out, shard, config.max_characters, partial(characters.score, model))


def best(scores: Sequence[float], share: float) -> float:
    """The score that `share` of all have or exceed.

    Example:
        >>> best([0.1, 0.4, 0.3, 0.2], 0.5)
        0.3
    """
    return sorted(scores, reverse=True)[max(1, round(share * len(scores))) - 1] if scores else 0.0


def _scores(workshop: Workshop, name: str, score: Any, pieces: Sequence[Piece], model: Part, max_characters: int) -> list[list[Score]]:
    """Of each shard the documents' ids and scores, in order."""
    path, digest = str(model.path / "model.npz"), model.sha256("model.npz")
    asked = [Piece((piece.value, path), [piece.identity, digest]) for piece in pieces]
    parts = workshop.made(name, score, asked, settings=max_characters)
    return [json.loads((part.path / "scores.json").read_text(encoding="utf-8")) for part in parts]


def _write_scores(out: Path, shard: str, max_characters: int, score: Callable[[list[str]], list[float]]) -> dict[str, Any]:
    documents, rows = read_shards(Path(shard)), list[Score]()
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        scores = score([document.text[:max_characters] for document in batch])
        rows += [(document.id, value) for document, value in zip(batch, scores, strict=True)]
    write_json(out / "scores.json", rows)
    return {"documents": len(rows)}


def _drops(scores: Sequence[Score], reason: str, bad: Callable[[float], bool]) -> Rulings:
    return Rulings({id: Verdict(False, reason, score) for id, score in scores if bad(score)})
