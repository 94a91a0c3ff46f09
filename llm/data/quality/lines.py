"""Lines or paragraphs that repeat, in one document and over the corpus: menus, licences, notices.

Source: CCNet, Wenzek et al. 2020, https://arxiv.org/abs/1911.00359, section 3.1, for what makes two paragraphs equal;
Llama 3, https://arxiv.org/abs/2407.21783, section 3.1.1, for a line that goes when it is found in several documents;
C4, https://arxiv.org/abs/1910.10683, section 2.2, for the one occurrence that stays.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.code import is_code
from llm.data.quality.config import RepeatsConfig
from llm.data.steps import Edited

COUNTS = np.dtype(
    [("unit", "<u8"), ("documents", "<u4"), ("first", "<u8")]
)  # hash of a unit, in how many, hash of the id of the first that may keep it
RANGE_ROWS = 8_000_000  # of all shards together, looked at at a time: some 300 MB
NOBODY = 0
NOTHING_LEFT = Verdict(False, "only_repeats")

_BORDER = "\x1e"  # in no repaired text
_marks = re.compile(r"[^\w\s]|_")
_digits = re.compile(r"\d")
_spare_lines = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Repeats:
    """Lines or paragraphs of one shard that are found too often, and for each which document may keep it."""

    units: NDArray[np.uint64]
    documents: NDArray[np.uint64]

    def keepers(self) -> dict[int, int]:
        """Who may keep a unit: the hash of a document's id, or NOBODY."""
        return dict(zip(self.units.tolist(), self.documents.tolist(), strict=True))

    def sha256(self) -> str:
        """What changes when they do."""
        return hashlib.sha256(self.units.tobytes() + self.documents.tobytes()).hexdigest()


def without_repeats(document: Document, config: RepeatsConfig, keepers: Mapping[int, int]) -> Edited | Verdict:
    """The document without the units that it repeats itself, and those that too many documents hold.

    `keepers` says for each of the latter which document keeps its first occurrence.
    """
    if is_code(document) or not (config.within_documents or keepers):
        return KEEP
    units, me = document.text.split(_separator(config)), _hash(document.id)
    seen, kept = set[int](), list[str]()
    for unit, key in zip(units, keys(document.text, config), strict=True):
        elsewhere = key in keepers and keepers[key] != me
        again = key in seen and (config.within_documents or key in keepers)
        if key == NOBODY or not (elsewhere or again):
            kept.append(unit)
        seen.add(key)
    if len(kept) == len(units):
        return KEEP
    text = _spare_lines.sub("\n\n", _separator(config).join(kept)).strip("\n")
    if not text.strip():
        return NOTHING_LEFT
    return Edited(replace(document, text=text + "\n"), {f"repeated_{config.unit}s": len(units) - len(kept)})


def keys(text: str, config: RepeatsConfig) -> list[int]:
    """A number for each line or paragraph, equal for those that count as equal; NOBODY for one too short to count.

    They are compared in lower case, without punctuation and accents, every digit as a 0.
    """
    text = text.replace(_separator(config), _BORDER)  # what is left of a line may be empty, and look like a paragraph's end
    if not text.isascii():
        text = "".join(character for character in unicodedata.normalize("NFD", text) if not unicodedata.combining(character))
    plain = _digits.sub("0", _marks.sub("", text.lower()))
    units = (" ".join(unit.split()) for unit in plain.split(_BORDER))
    return [_hash(unit) if len(unit) >= config.min_characters else NOBODY for unit in units]


def count(documents: Iterable[Document], config: RepeatsConfig, stays: Callable[[Document], bool]) -> NDArray[np.void]:
    """In how many of the documents each unit is, and in which first of those that stay, or NOBODY; by hash."""
    found: dict[int, list[int]] = {}
    for document in documents:
        if not is_code(document):
            keeper = _hash(document.id) if config.keep_first and stays(document) else NOBODY
            for key in set(keys(document.text, config)) - {NOBODY}:
                row = found.setdefault(key, [0, NOBODY])
                row[:] = row[0] + 1, row[1] or keeper
    return np.array(sorted((key, number, first) for key, (number, first) in found.items()), COUNTS)


def frequent(counted: Sequence[Path], config: RepeatsConfig) -> list[Repeats]:
    """Of each shard the units that `min_documents` or more of the corpus hold, from the shards' counts in order.

    Works through the hashes range by range, so that memory does not grow with the corpus.
    """
    tables = [np.load(path, mmap_mode="r") for path in counted]
    ranges = 1 + sum(map(len, tables)) // RANGE_ROWS
    found: list[list[NDArray[np.void]]] = [[] for _ in tables]
    for number in range(ranges):
        low, high = (np.uint64(end * (2**64 - 1) // ranges) for end in (number, number + 1))
        slices = [table[np.searchsorted(table["unit"], low, "left") : np.searchsorted(table["unit"], high, "left")] for table in tables]
        _frequent_in_range(slices, found, config)
    return [_repeats(parts) for parts in found]


def _frequent_in_range(slices: list[NDArray[np.void]], found: list[list[NDArray[np.void]]], config: RepeatsConfig) -> None:
    """Adds each shard's frequent rows of one range, `first` being who may keep the unit."""
    rows = np.concatenate(slices)
    units, inverse = np.unique(rows["unit"], return_inverse=True)
    documents = np.bincount(inverse, weights=rows["documents"], minlength=len(units))
    chosen = documents[inverse] >= (config.min_documents or np.inf)
    keepers = np.full(len(units), NOBODY, np.uint64)
    kept = np.flatnonzero(rows["first"] != NOBODY)
    keepers[inverse[kept[::-1]]] = rows["first"][kept[::-1]]  # the last that is written is the first shard's
    rows["first"] = keepers[inverse]
    for shard, (part, mask) in enumerate(zip(_cut(rows, slices), _cut(chosen, slices), strict=True)):
        found[shard].append(part[mask])


def _cut(rows: NDArray[Any], slices: list[NDArray[np.void]]) -> list[NDArray[Any]]:
    """A column of all slices, as columns of each."""
    return np.split(rows, np.cumsum([len(part) for part in slices])[:-1])


def _repeats(parts: list[NDArray[np.void]]) -> Repeats:
    rows = np.concatenate(parts)
    return Repeats(np.ascontiguousarray(rows["unit"]), np.ascontiguousarray(rows["first"]))


def _separator(config: RepeatsConfig) -> str:
    return "\n" if config.unit == "line" else "\n\n"


def _hash(text: str) -> int:
    """64 bits that no two texts share by chance; never NOBODY."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1
