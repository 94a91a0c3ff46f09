"""What every server of R7 measures: greedy continuations of one prompt, and of several at once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int], list[list[int]]]


def given() -> dict[str, Any]:
    """The case from standard input: folder, kind, threads, repeats, and rounds of prompts and tokens."""
    case: dict[str, Any] = json.load(sys.stdin)
    return case


def measure(case: dict[str, Any], generate: Generate) -> None:
    """Print, per round, the least seconds with all tokens, for one stream also with one token, and the ids."""
    generate([case["rounds"][0]["prompts"][0][:8]], 2)
    answers = []
    for each in case["rounds"]:
        lengths = {"all": each["tokens"]} | ({"first": 1} if len(each["prompts"]) == 1 else {})
        seconds: dict[str, list[float]] = {name: [] for name in lengths}
        written = {}
        for name in list(lengths) * case["repeats"]:
            began = time.perf_counter()
            written[name] = generate(each["prompts"], lengths[name])
            seconds[name].append(time.perf_counter() - began)
        answers.append({name: min(found) for name, found in seconds.items()} | {"ids": written["all"]})
    print(json.dumps(answers))
