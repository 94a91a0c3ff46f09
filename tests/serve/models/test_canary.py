"""The rule that ends a trial, and the spreading of keys, against the binomial distribution."""

from __future__ import annotations

from collections import deque

import pytest
from scipy.stats import binom, kstest

from llm.serve.models.canary import Tally, judge, place
from llm.serve.models.config import CanaryConfig

CONFIG = CanaryConfig(requests=50, seconds=120, failures=3, error_margin=0.02, latency_ratio=1.5, latency_slack_seconds=0.05)


def tally(requests: int = 0, failures: int = 0, seconds: float | None = None) -> Tally:
    return Tally(requests, failures, deque([] if seconds is None else [seconds] * (requests - failures)))


@pytest.mark.parametrize(
    ("live", "trial", "elapsed", "verdict"),
    [
        (tally(500), tally(49), 1, "on trial"),
        (tally(500), tally(50), 1, "promoted"),
        (tally(), tally(), 119, "on trial"),
        (tally(), tally(), 120, "promoted"),
        (tally(20), tally(), 121, "on trial"),
        (tally(20), tally(1), 121, "promoted"),
        (tally(20), tally(2, 2), 121, "on trial"),
        (tally(20), tally(3, 3), 121, "rolled back"),
        (tally(20, 20), tally(2, 2), 121, "on trial"),
        (tally(), tally(1, 1), 121, "on trial"),
        (tally(100), tally(50, 2), 1, "on trial"),
        (tally(100), tally(100, 2), 1, "promoted"),
        (tally(100), tally(2, 2), 1, "on trial"),
        (tally(100), tally(3, 3), 1, "rolled back"),
        (tally(100), tally(49, 3), 1, "rolled back"),
        (tally(100), tally(60, 3), 1, "rolled back"),
        (tally(100, 5), tally(50, 3), 1, "promoted"),
        (tally(100, 50), tally(50, 26), 1, "promoted"),
        (tally(100, 50), tally(50, 27), 1, "rolled back"),
        (tally(100, 0, 0.2), tally(9, 0, 9.0), 1, "on trial"),
        (tally(100, 0, 0.2), tally(10, 0, 0.36), 1, "rolled back"),
        (tally(100, 0, 0.2), tally(10, 0, 0.34), 1, "on trial"),
        (tally(9, 0, 0.2), tally(50, 0, 9.0), 1, "promoted"),
        (tally(100, 0, 0.001), tally(50, 0, 0.04), 1, "promoted"),
    ],
)
def test_verdicts(live: Tally, trial: Tally, elapsed: float, verdict: str) -> None:
    assert judge(live, trial, elapsed, CONFIG)[0] == verdict


def test_a_slow_request_now_and_then_is_no_reason() -> None:
    trial = tally(30, 0, 0.2)
    trial.first_token_seconds.extend([30.0] * 5)
    assert judge(tally(100, 0, 0.2), trial, 1, CONFIG)[0] == "on trial"


def test_failed_requests_say_nothing_of_latency() -> None:
    counted = Tally()
    counted.add(ok=False, first_token_seconds=9.0)
    counted.add(ok=True, first_token_seconds=None)
    counted.add(ok=True, first_token_seconds=0.5)
    assert (counted.requests, counted.failures, list(counted.first_token_seconds)) == (3, 1, [0.5])


def test_places_are_uniform_and_independent() -> None:
    first, second = ([place(f"client {number}", salt) for number in range(20_000)] for salt in ("one", "two"))
    assert kstest(first, "uniform").pvalue > 1e-3
    both = sum(a < 0.3 and b < 0.3 for a, b in zip(first, second, strict=True))
    low, high = binom.interval(0.9999, 20_000, 0.09)
    assert low <= both <= high
