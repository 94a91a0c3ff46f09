"""What a person should know of a step that was no ordinary one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORDS = {"skip": "not applied", "roll back": "not applied, and the training returns to its last checkpoint"}  # by a guard's action


def remarks(record: Mapping[str, Any]) -> list[str]:
    """Of a step's record in `metrics.jsonl` or `history.jsonl`: why it was not applied, or the alerts that begin with it.

    Example:
        >>> remarks({"step": 7, "action": "skip", "reason": "loss nan, gradient norm nan", "rows": [3]})
        ['step 7 was not applied: loss nan, gradient norm nan']
        >>> remarks({"step": 8, "loss": 2.0, "alerts": ["loss rises"]})
        ['step 8: loss rises']
    """
    if "reason" in record:
        return [f"step {record['step']} was {WORDS[record['action']]}: {record['reason']}"]
    return [f"step {record['step']}: {alert}" for alert in record.get("alerts", [])]
