"""A version on trial: is it worse than the live one?

Both answer requests in the same window. The trial ends in one of two ways.

- Rolled back, as soon as the next version has failed `failures` requests and its error rate is above the live version's
  by more than `error_margin`; or as soon as both have shown `latency_requests` first tokens and its median time is above
  `latency_ratio` times the live version's plus `latency_slack_seconds`.
- Promoted, when its error rate is within that margin and it has met `requests` requests; or fewer, when `seconds` have
  passed and it has answered `answers` of them, or the live version met none either. Then the generation that it wrote
  when it was loaded (served.py) is all that anybody asked for.

Until one of them happens it stays on trial: a version that never answers takes no more than its share.

A median, since one slow request in a window of a few dozen says nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b
from statistics import median
from typing import Literal

from llm.serve.models.config import CanaryConfig

Verdict = Literal["on trial", "promoted", "rolled back"]


@dataclass
class Tally:
    """How the requests of one version ended."""

    requests: int = 0
    failures: int = 0
    first_token_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def add(self, *, ok: bool, first_token_seconds: float | None) -> None:
        """Count one request."""
        self.requests += 1
        self.failures += not ok
        if ok and first_token_seconds is not None:
            self.first_token_seconds.append(first_token_seconds)

    @property
    def error_rate(self) -> float:
        return self.failures / max(self.requests, 1)

    @property
    def answers(self) -> int:
        return self.requests - self.failures


def judge(live: Tally, trial: Tally, seconds: float, config: CanaryConfig) -> tuple[Verdict, str]:
    """What becomes of a version after so many seconds on trial, and why.

    Example:
        >>> judge(Tally(100, 1), Tally(5, 3), 10.0, CanaryConfig())
        ('rolled back', '3 of 5 requests failed, 1 of 100 of the live version')
    """
    worse = trial.error_rate > live.error_rate + config.error_margin
    if trial.failures >= config.failures and worse:
        return (
            "rolled back",
            f"{trial.failures} of {trial.requests} requests failed, {live.failures} of {live.requests} of the live version",
        )
    if min(len(live.first_token_seconds), len(trial.first_token_seconds)) >= config.latency_requests:
        usual, found = median(live.first_token_seconds), median(trial.first_token_seconds)
        if found > config.latency_ratio * usual + config.latency_slack_seconds:
            return "rolled back", f"its median first token took {found:.3f} s, the live version's {usual:.3f} s"
    quiet = seconds >= config.seconds and (trial.answers >= config.answers or live.requests == 0)
    if not worse and (trial.requests >= config.requests or quiet):
        return "promoted", f"{trial.failures} of {trial.requests} requests failed in {seconds:.0f} s"
    return "on trial", ""


def place(key: str, salt: str) -> float:
    """Where a key falls from 0 to 1: always the same place for one salt, evenly spread over keys.

    Example:
        >>> place("client", "chat") == place("client", "chat") != place("client", "other")
        True
    """
    return int.from_bytes(blake2b(f"{salt}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64
