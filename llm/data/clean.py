"""Stage clean: repaired text, and only what is worth learning from.

Two passes over the shards, each a table of steps. The first finds out what every text was meant to be. What has to be
known of all shards together is counted there, and decided between the passes. The second looks for objections, and
makes what is left fit to learn from. A change of a threshold repeats the second pass alone. Documents that an evaluation
set finds in what is left, and found nothing in before, go last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llm.artifact import write_json
from llm.data.config import CleanConfig, LabelledSet
from llm.data.document import Books, concatenate, read_documents, read_shards
from llm.data.filters import lexicon
from llm.data.filters.corpus import last_rulings, report, survey
from llm.data.filters.lexicon import Lexicon, judge_words
from llm.data.filters.licence import judge_licence
from llm.data.filters.privacy import mask
from llm.data.filters.rulings import Rulings, carry_out
from llm.data.parts import Part, Piece, Workshop, link, shards
from llm.data.quality.c4 import whole_lines
from llm.data.quality.judge import judge, judge_page
from llm.data.quality.language import identify
from llm.data.quality.lines import Repeats, count, frequent, without_repeats
from llm.data.quality.words import plain_words
from llm.data.repair import repairs
from llm.data.steps import Edited, Step, through, write_through
from llm.errors import DataError


@dataclass(frozen=True)
class Decisions:
    """What all shards together decide for one of them."""

    repeats: Repeats | None = None  # none are asked for
    rulings: Rulings = field(default_factory=Rulings)
    lexicons: tuple[Lexicon, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What changes when they do: a shard that they treat as before is not cleaned again."""
        return {
            "repeats": self.repeats and self.repeats.sha256(),
            "rulings": self.rulings.identity(),
            "lexicons": [each.sha256() for each in self.lexicons],
        }


def filters(config: CleanConfig, decisions: Decisions) -> tuple[Step, ...]:
    """The steps of the second pass, in order: whether to keep it, and in which form."""
    keepers = decisions.repeats.keepers() if decisions.repeats else {}
    return (
        partial(judge_licence, config=config.licences),
        partial(carry_out, rulings=decisions.rulings),
        partial(identify, config=config.language),
        partial(judge_page, config=config),
        partial(whole_lines, config=config),
        partial(without_repeats, config=config.repeats, keepers=keepers),
        partial(judge, config=config),
        *(partial(judge_words, lexicon=words, config=its) for words, its in zip(decisions.lexicons, config.lexicons, strict=True)),
        partial(mask, config=config.privacy),
        partial(plain_words, config=config.words),
    )


def clean(collected: Path, out: Path, config: CleanConfig, workshop: Workshop, sets: Sequence[LabelledSet] = ()) -> dict[str, Any]:
    """Shards of repaired documents that pass every rule; the others go to `dropped.jsonl` with reason and score.

    `books.json` says how many of what was edited, beside the balanced books. `sets` are those that a model will be judged on.

    Raises: DataError if nothing passes.
    """
    settings = config.model_dump(mode="json")
    found_shards = shards(collected, "documents-*.parquet")
    repaired = workshop.made("repaired", partial(repair_shard, config), found_shards, settings=settings["repair"])
    surveyed = survey(_pieces(repaired), config, sets, workshop)
    pieces = decide(repaired, config, surveyed.rulings, workshop)
    filtered = workshop.made("filtered", partial(filter_shard, config), pieces, settings=settings)
    passes = [repaired, filtered]
    rulings = last_rulings(_pieces(filtered), config, sets, workshop)
    if any(each.drops for each in rulings):
        passes.append(workshop.made("ruled", rule_shard, _decided(filtered, [Decisions(rulings=each) for each in rulings])))
    for number, path in enumerate(path for part in passes[-1] for path in part.files("documents-*.parquet")):
        link(path, out / f"documents-{number:05d}.parquet")
    concatenate((part.path / "dropped.jsonl" for parts in passes for part in parts), out / "dropped.jsonl")
    books = _books(passes)
    found = report(surveyed, _pieces(passes[-1]), config, sets, workshop, out)
    counts = {**books.to_dict(), "edits": _edits(passes), **found}
    write_json(out / "books.json", counts)
    if not books.kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(books.dropped.items()))
        raise DataError("no document is left after cleaning", value=reasons, remedy="relax the thresholds of clean")
    return counts


def repair_shard(config: CleanConfig, shard: str, out: Path) -> dict[str, Any]:
    """One shard as it was meant to be; its books."""
    return write_through(out, read_documents(Path(shard)), repairs(config.repair))


def decide(repaired: Sequence[Part], config: CleanConfig, rulings: Sequence[Rulings], workshop: Workshop) -> list[Piece]:
    """The repaired shards, each with what is decided for it."""
    lexicons = tuple(lexicon.load(each.path) for each in config.lexicons)
    decisions = [Decisions(None, its, lexicons) for its in rulings]
    if config.repeats.min_documents:
        settings = config.model_dump(mode="json")
        counted = workshop.made("repeats", partial(count_shard, config), _decided(repaired, decisions), settings=settings)
        repeats = frequent([part.path / "repeats.npy" for part in counted], config.repeats)
        decisions = [replace(each, repeats=its) for each, its in zip(decisions, repeats, strict=True)]
    return _decided(repaired, decisions)


def count_shard(config: CleanConfig, value: tuple[str, Decisions], out: Path) -> dict[str, Any]:
    """Writes `repeats.npy`: the lines of one repaired shard. Only a document that passes the second pass may keep one for all."""
    shard, decisions = value
    steps = filters(config, decisions)
    counts = count(read_shards(Path(shard)), config.repeats, lambda document: isinstance(through(document, steps), Edited))
    np.save(out / "repeats.npy", counts)
    return {"units": len(counts)}


def filter_shard(config: CleanConfig, value: tuple[str, Decisions], out: Path) -> dict[str, Any]:
    """What is left of one repaired shard; its books."""
    shard, decisions = value
    return write_through(out, read_shards(Path(shard)), filters(config, decisions))


def rule_shard(value: tuple[str, Decisions], out: Path) -> dict[str, Any]:
    """One filtered shard without what the last look at all of them rules out; its books."""
    shard, decisions = value
    return write_through(out, read_shards(Path(shard)), (partial(carry_out, rulings=decisions.rulings),))


def _pieces(parts: Sequence[Part]) -> list[Piece]:
    return [Piece(str(part.path), _content(part)) for part in parts]


def _decided(repaired: Sequence[Part], decisions: Sequence[Decisions]) -> list[Piece]:
    return [
        Piece((str(part.path), its), {"documents": _content(part), "decisions": its.identity()})
        for part, its in zip(repaired, decisions, strict=True)
    ]


def _content(part: Part) -> list[str]:
    return [part.sha256(path.name) for path in part.files("documents-*.parquet")]


def _books(passes: Sequence[Sequence[Part]]) -> Books:
    """The books of all passes as one: each reads what the one before kept."""
    first, *others = (Books.sum(part.counts for part in parts) for parts in passes)
    books = first
    for each in others:
        books = Books(books.read, each.kept, books.dropped + each.dropped, books.quarantined + each.quarantined)
    books.check()
    return books


def _edits(passes: Sequence[Sequence[Part]]) -> dict[str, int]:
    """What was changed in documents that passed, and how much of it."""
    edits: Counter[str] = Counter()
    for part in chain.from_iterable(passes):
        edits.update(part.counts["edits"])
    return dict(sorted(edits.items()))
