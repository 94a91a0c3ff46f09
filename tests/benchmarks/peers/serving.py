"""What every server of R7 measures: greedy continuations of one prompt, and of several at once, each timed with one token and with all."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int], list[list[int]]]


def given() -> dict[str, Any]:
    """The case: folder, kind, threads, and rounds of prompts and tokens."""
    case: dict[str, Any] = json.loads(sys.argv[1])
    return case


def measure(case: dict[str, Any], generate: Generate) -> None:
    """Print, per round, the seconds with one token and with all, the smaller of two each, and the ids."""
    generate([case["rounds"][0]["prompts"][0][:8]], 2)
    answers = []
    for each in case["rounds"]:
        seconds: dict[int, list[float]] = {1: [], each["tokens"]: []}
        for tokens in list(seconds) * 2:
            began = time.perf_counter()
            ids = generate(each["prompts"], tokens)
            seconds[tokens].append(time.perf_counter() - began)
        answers.append({"first": min(seconds[1]), "all": min(seconds[each["tokens"]]), "ids": ids})
    print(json.dumps(answers))
