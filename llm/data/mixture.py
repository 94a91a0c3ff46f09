"""Which rows training reads how often: every stage deals an exact number of rows of each group, evenly interleaved.

The row at a place of the sample stream is computed from the place alone, as without a mixture: nothing is drawn in turn,
so a run resumes anywhere at once, and any number of workers reads the same stream.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.config import CorpusMixtureConfig, WeightsConfig
from llm.data.rows import BLOCK, Group, by_blocks, shuffled
from llm.errors import RecipeError

ROUNDS = 200  # of fitting shares to two margins, and of halving an interval
Numbers = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Stage:
    """Places first … first + sum(counts) - 1 of the stream. Shapes: all G."""

    first: int
    counts: Numbers  # rows of each group
    earlier: Numbers  # rows of each group that earlier stages read


@dataclass(frozen=True, eq=False)
class Blend:
    """A sample stream over groups of rows."""

    groups: tuple[Group, ...]
    stages: tuple[Stage, ...]
    seed: int

    @classmethod
    def plan(cls, groups: tuple[Group, ...], config: CorpusMixtureConfig, places: int, seed: int) -> Blend:
        """The stream of a training that reads `places` rows.

        Raises: RecipeError if the setting names what the rows lack, contradicts itself or asks for more rows than it allows.
        """
        _check_names(groups, config)
        sizes = np.array([group.rows for group in groups])
        limits = np.array([config.domain_max_epochs.get(group.domain, config.max_epochs or places) for group in groups])
        parts: Sequence[tuple[float, WeightsConfig]] = [(part.share, part) for part in config.stages] or [(1.0, config)]
        edges = np.rint(np.cumsum([0.0, *(share for share, _ in parts)]) * places).astype(np.int64)
        stages, earlier = list[Stage](), np.zeros_like(sizes)
        for (_, weights), first, end in zip(parts, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if first == end:
                remedy = "give each of train.mixture.stages a larger share, or raise train.steps"
                raise RecipeError("a stage of the mixture reads no row", value=f"{len(parts)} stages of {places} rows", remedy=remedy)
            left = np.minimum(limits * sizes - earlier, end - first).astype(np.int64)
            stages.append(Stage(first, allotted(wanted(groups, weights), weights.min_share, left, end - first), earlier))
            earlier = earlier + stages[-1].counts
        return cls(groups, tuple(stages), seed)

    def indices(self, first: int, count: int) -> Numbers:
        """Training rows at the places first … first + count - 1. Behind the last place, the last stage begins anew."""
        return by_blocks(first, count, lambda block: _block(self, block))

    def rows_at(self, first: int, end: int) -> Numbers:
        """The same, each time computed."""
        ends = [*(stage.first for stage in self.stages[1:]), end]
        places = [np.arange(max(first, stage.first), min(end, last)) for stage, last in zip(self.stages, ends, strict=True)]
        return np.concatenate([self._stage_rows(stage, each) for stage, each in zip(self.stages, places, strict=True)])

    def _stage_rows(self, stage: Stage, places: Numbers) -> Numbers:
        rounds, places = np.divmod(places - stage.first, max(1, stage.counts.sum()))
        before = dealt(places, stage.counts)
        group = (dealt(places + 1, stage.counts) - before).argmax(axis=0)
        number = stage.earlier[group] + rounds * stage.counts[group] + before[group, np.arange(len(places))]
        sizes = np.array([each.rows for each in self.groups])
        seeds = group.astype(np.uint64) + np.uint64(self.seed % 2**64)
        rows = shuffled(number.astype(np.uint64), sizes[group].astype(np.uint64), seeds)
        return (np.cumsum(sizes) - sizes)[group] + rows

    def realised(self, place: int) -> list[dict[str, Any]]:
        """Of each group, what the stream has read before `place`: rows, epochs, and share of all tokens, padding left out."""
        stage = next(stage for stage in reversed(self.stages) if stage.first <= place)
        rounds, inside = divmod(place - stage.first, max(1, stage.counts.sum()))
        rows = stage.earlier + rounds * stage.counts + dealt(np.array([inside]), stage.counts)[:, 0]
        epochs = rows / np.array([max(1, group.rows) for group in self.groups])
        tokens = epochs * [group.tokens for group in self.groups]
        return [
            {"domain": group.domain, "language": group.language, "rows": int(n), "epochs": float(epoch), "token_share": float(share)}
            for group, n, epoch, share in zip(self.groups, rows, epochs, tokens / max(1.0, tokens.sum()), strict=True)
        ]


@functools.lru_cache(maxsize=16)
def _block(blend: Blend, block: int) -> Numbers:
    return blend.rows_at(block * BLOCK, (block + 1) * BLOCK)


def dealt(places: Numbers, counts: Numbers) -> Numbers:
    """How many rows of each group stand before each of these places, in a deck of `counts` rows by group; G, n.

    The deck is split in two, its largest group and the rest, as evenly as whole numbers allow, and the rest again.

    Example:
        >>> np.diff(dealt(np.arange(7), np.array([3, 2, 1]))).argmax(axis=0).tolist()
        [0, 1, 0, 2, 0, 1]
    """
    left, cards = places, int(counts.sum())
    assert cards < 2**31, "products fit into 63 bits"
    before = np.zeros((len(counts), len(places)), np.int64)
    for group in np.argsort(-counts, kind="stable").tolist():
        if cards:
            before[group] = (left * counts[group] + cards // 2) // cards
        left, cards = left - before[group], cards - int(counts[group])
    return before


def wanted(groups: Sequence[Group], weights: WeightsConfig) -> Shares:
    """Share of each group as its size, the temperature and the named shares have it.

    Source: temperature, https://arxiv.org/abs/1911.02116, section 3.1, with 1/T for their alpha, and mT5,
    https://arxiv.org/abs/2010.11934, section 3.2; shares of both kinds hold by iterative proportional fitting, Deming &
    Stephan 1940, https://doi.org/10.1214/aoms/1177731829.
    Raises: RecipeError if no shares of the groups have the sums that are asked for.
    """
    shares = np.array([group.rows for group in groups]) ** (1 / weights.temperature)
    shares /= shares.sum()
    domains, languages = np.array([group.domain for group in groups]), np.array([group.language for group in groups])
    for _ in range(ROUNDS if weights.domains and weights.languages else 1):
        shares = _held(_held(shares, domains, weights.domains), languages, weights.languages)
    for setting, names, asked in (("domains", domains, weights.domains), ("languages", languages, weights.languages)):
        missed = {name: share for name, share in asked.items() if abs(shares[names == name].sum() - share) > 1e-3}
        if missed or abs(shares.sum() - 1) > 1e-3:
            raise RecipeError(
                "no mixture of the corpus has these shares",
                value=missed or asked,
                remedy=f"set train.mixture.{setting} so that all domains, and all languages, can add up to 1",
            )
    return shares / shares.sum()


def _held(shares: Shares, names: NDArray[np.str_], asked: dict[str, float]) -> Shares:
    """The same with the named sums as asked, and the others divided as they are."""
    if not asked:
        return shares
    held = shares.copy()
    parts = [(names == name, share) for name, share in asked.items()] + [(~np.isin(names, list(asked)), 1 - sum(asked.values()))]
    for part, share in parts:
        held[part] *= share / (held[part].sum() or 1.0)
    return held


def allotted(shares: Shares, min_share: float, limits: Numbers, places: int) -> Numbers:
    """Whole rows of each group that add up to `places`: in proportion to the shares, within the limits, none below the least share.

    Raises: RecipeError if the limits leave too few rows, or the least shares are more than all.
    """
    limits = np.where(shares > 0, limits, 0)
    if limits.sum() < places:
        raise RecipeError(
            "a training reads more rows than its mixture allows",
            value=f"{places} rows of {limits.sum()}",
            remedy="raise train.mixture.max_epochs or domain_max_epochs, or lower train.steps",
        )
    least = np.where(shares > 0, np.minimum(min_share * places, limits), 0)
    if least.sum() > places:
        value = f"{min_share} for each of {np.count_nonzero(shares)} groups"
        raise RecipeError("least shares are more than the whole", value=value, remedy="lower train.mixture.min_share")
    ideal = _bounded(shares * places, least, limits.astype(np.float64), places)
    counts = np.minimum(ideal.astype(np.int64), limits)
    while (missing := places - int(counts.sum())) > 0:  # the largest remainders are rounded up
        open_groups = np.flatnonzero(counts < limits)
        counts[open_groups[np.argsort(counts[open_groups] - ideal[open_groups], kind="stable")[:missing]]] += 1
    return counts


def _bounded(ideal: Shares, least: Shares, most: Shares, total: int) -> Shares:
    """Numbers in proportion to `ideal` where bounds allow it, that add up to `total`: the factor is found by halving."""
    low, high = 0.0, float((most[ideal > 0] / ideal[ideal > 0]).max()) if total else 1.0
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(ideal * middle, least, most).sum() < total else (low, middle)
    return np.clip(ideal * low, least, most)


def _check_names(groups: Sequence[Group], config: CorpusMixtureConfig) -> None:
    """Raises: RecipeError if the rows aren't told apart, or lack a named domain or language."""
    if not groups:
        raise RecipeError(
            "these rows have no groups to mix", value="train.mixture", remedy="unset it: it is for rows of the tokenize stage"
        )
    asked = {"domain": set(config.domain_max_epochs), "language": set[str]()}
    for weights in (config, *config.stages):
        asked["domain"] |= set(weights.domains)
        asked["language"] |= set(weights.languages)
    for kind, names in asked.items():
        have = sorted({getattr(group, kind) for group in groups if group.rows})
        for name in sorted(names - set(have)):
            near = difflib.get_close_matches(name, have, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise RecipeError(f"no row of the corpus has this {kind}", value=name, remedy=f"{hint}train.mixture can name {', '.join(have)}")
