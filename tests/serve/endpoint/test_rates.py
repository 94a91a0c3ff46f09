"""Allowances refill evenly, and one key's are not another's."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from llm.serve.endpoint.keys import Key, make_key
from llm.serve.endpoint.rates import Accounts, Allowance, Failures


def key(**limits: int) -> Key:
    return Key.model_validate(json.loads(make_key("k", **limits)[1]))


@given(st.lists(st.floats(min_value=0, max_value=30), min_size=1, max_size=60), st.integers(min_value=1, max_value=120))
def test_never_more_than_the_allowance_and_its_refill(pauses: list[float], per_minute: int) -> None:
    now = 0.0
    allowance = Allowance(per_minute, clock=lambda: now)
    taken = 0
    for pause in pauses:
        now += pause
        while not allowance.wait_seconds(1):
            allowance.take(1)
            taken += 1
    assert taken <= per_minute + now * per_minute / 60 + 1e-6
    assert taken >= per_minute


def test_after_the_wait_there_is_enough() -> None:
    now = 0.0
    allowance = Allowance(6, clock=lambda: now)
    allowance.take(9)
    wait = allowance.wait_seconds(1)
    assert wait == 40  # 4 units short at 6 a minute
    now += wait
    assert allowance.wait_seconds(1) == 0


def test_requests_tokens_and_concurrency_are_limited_apart() -> None:
    accounts, busy, often, much = Accounts(), key(concurrent=1), key(requests_per_minute=2), key(tokens_per_minute=100)
    assert accounts.admit(busy) == 0
    assert accounts.admit(busy) > 0
    accounts.settle(busy, 5)
    assert accounts.admit(busy) == 0
    assert [accounts.admit(often) == 0 for _ in range(3)] == [True, True, False]
    assert accounts.admit(much) == 0
    accounts.settle(much, 250)
    assert accounts.admit(much) in (90, 91)  # 151 tokens short at 100 a minute
    assert accounts.admit(key(tokens_per_minute=100)) == 0


def test_failures_are_counted_per_address() -> None:
    failures = Failures(3)
    assert [failures.wait_seconds("a") == 0 for _ in range(5)] == [True, True, True, False, False]
    assert failures.wait_seconds("b") == 0
