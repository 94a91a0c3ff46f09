"""Whether a candidate may replace the champion."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """The answer and the sentence that explains it."""

    champion: bool
    reason: str


def decide(candidate_bits_per_byte: float, champion_bits_per_byte: float | None, *, tolerance_bits_per_byte: float) -> Decision:
    """Yes if the candidate is not worse than the champion by more than the tolerance; both on the same documents.

    Example:
        >>> decide(1.52, 1.50, tolerance_bits_per_byte=0.05).champion
        True
        >>> decide(1.52, 1.50, tolerance_bits_per_byte=0.0).reason
        '1.5200 bits per byte is worse than the champion, 1.5000 + 0.0000'
    """
    if not math.isfinite(candidate_bits_per_byte):
        return Decision(False, f"{candidate_bits_per_byte} bits per byte is no score")
    scored = f"{candidate_bits_per_byte:.4f} bits per byte"
    if champion_bits_per_byte is None:
        return Decision(True, f"{scored}, the first version")
    allowed = f"{champion_bits_per_byte:.4f} + {tolerance_bits_per_byte:.4f}"
    if candidate_bits_per_byte <= champion_bits_per_byte + tolerance_bits_per_byte:
        return Decision(True, f"{scored} is not worse than the champion, {allowed}")
    return Decision(False, f"{scored} is worse than the champion, {allowed}")
