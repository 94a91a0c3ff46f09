"""Memory for keys and values: what is free, and how many tokens it holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from llm.errors import CapacityError

FREE_SHARE = 0.8  # of the memory that nobody uses at the start
GROUP = Path("/sys/fs/cgroup")  # of this container


@dataclass(frozen=True)
class Room:
    """How many tokens' keys and values may be held, of running texts and of finished ones that are kept."""

    running_tokens: int
    kept_tokens: int


def available_bytes(group: Path = GROUP) -> int:
    """What the machine has, or less if the container may not take as much; file pages that the kernel would drop are free.

    Source: memory.max, memory.current and memory.stat, https://docs.kernel.org/admin-guide/cgroup-v2.html.
    """
    machine, limit = psutil.virtual_memory().available, group / "memory.max"
    if not limit.is_file() or (most := limit.read_text().strip()) == "max":
        return machine
    dropped = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    used = int((group / "memory.current").read_text()) - (int(dropped[1]) if dropped else 0)
    return min(machine, max(0, int(most) - used))


def affordable(slots: int, context_tokens: int, *, prefix_tokens: int, token_bytes: int, free_bytes: int) -> Room:
    """A whole context in every slot and for a text that is only read, and `prefix_tokens` kept, unless most of the memory holds less.

    Raises: CapacityError if that doesn't hold a context that runs and one that is read.
    """
    fitting = int(FREE_SHARE * free_bytes) // token_bytes
    beside = fitting - 2 * context_tokens
    if beside < 0:
        value = f"{fitting:,} tokens of {token_bytes:,} bytes fit, two contexts are {2 * context_tokens:,}"
        remedy = "set engine.kv_tokens to what one text may need"
        raise CapacityError("memory is short for keys and values", value=value, remedy=remedy, transient=True)
    kept = min(prefix_tokens, beside // 2)
    return Room(min(slots * context_tokens, context_tokens + beside - kept), kept)
