"""What words, shingles and their similarity are, spelled out slowly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

UNSPACED = "\u0e00-\u107f\u1780-\u17ff\u2000-\u9fff\uf000-\U0010ffff"
TOKEN = re.compile(rf"[{UNSPACED}]|(?:[0-9a-z_]|(?![{UNSPACED}])[\x80-\U0010ffff])+|[!-/:-@\[-^`{{-~]")


def words(text: str) -> list[bytes]:
    """Characters of unspaced scripts, words cut after 64 bytes, and marks."""
    tokens = [token.encode() for token in TOKEN.findall(text.lower())]
    return [token[start : start + 64] for token in tokens for start in range(0, len(token), 64)]


def shingles(text: str, size: int = 5) -> set[tuple[bytes, ...]]:
    """Runs of `size` words; a shorter text is one."""
    tokens = words(text)
    return {tuple(tokens[start : start + size]) for start in range(max(1, len(tokens) - size + 1))} if tokens else set()


def jaccard(one: set[tuple[bytes, ...]], two: set[tuple[bytes, ...]]) -> float:
    return len(one & two) / max(1, len(one | two))


def similar_pairs(texts: Sequence[str], at_least: float) -> dict[tuple[int, int], float]:
    """Every pair that reaches `at_least`, exactly: only pairs with a common shingle can."""
    sets = [shingles(text) for text in texts]
    holders = defaultdict(list)
    for number, each in enumerate(sets):
        for shingle in each:
            holders[shingle].append(number)
    pairs = {pair for members in holders.values() for pair in combinations(members, 2)}
    similarities = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in pairs}
    return {pair: similarity for pair, similarity in similarities.items() if similarity >= at_least}
