"""Who trains, who validates, who tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from llm.data.hashing import share
from llm.errors import DataError

SPLITS = ("train", "validation", "test")


def split_of(id: str, *, validation_share: float, test_share: float) -> str:
    """The split of a document, by a stable hash: it stays there when the corpus grows."""
    place = share(id, "split")
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def require_all(splits: Iterable[str], section: str) -> dict[str, int]:
    """How many members each split has.

    Raises: DataError if one has none.
    """
    counts = Counter(splits)
    for split in SPLITS:
        if not counts[split]:
            setting = f"{section}.{split}_share" if split != "train" else f"{section}.validation_share or {section}.test_share"
            raise DataError(
                f"the {split} split is empty",
                value=f"{counts.total()} members in all",
                remedy=f"{'raise' if split != 'train' else 'lower'} {setting}, or collect more text",
            )
    return {split: counts[split] for split in SPLITS}
