"""How often and how much: allowances that refill with time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llm.serve.endpoint.keys import Key

MINUTE_SECONDS = 60.0
MOST_ADDRESSES = 10_000


@dataclass
class Allowance:
    """`per_minute` units that refill evenly; debts are allowed and have to be waited for.

    Source: token bucket, https://en.wikipedia.org/wiki/Token_bucket.
    """

    per_minute: float
    clock: Callable[[], float] = time.monotonic
    left: float = field(init=False)
    seen: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.seen = self.per_minute, self.clock()

    def wait_seconds(self, need: float) -> float:
        """Time until `need` units are there; 0 if they are."""
        now = self.clock()
        self.left = min(self.per_minute, self.left + (now - self.seen) * self.per_minute / MINUTE_SECONDS)
        self.seen = now
        return max(0.0, need - self.left) * MINUTE_SECONDS / self.per_minute

    def take(self, units: float) -> None:
        """Use units, perhaps more than are left."""
        self.left -= units


@dataclass
class Account:
    """What one key has used."""

    requests: Allowance | None
    tokens: Allowance | None
    running: int = 0

    @classmethod
    def of(cls, key: Key) -> Account:
        """A key's account, full."""
        return cls(
            Allowance(key.requests_per_minute) if key.requests_per_minute else None,
            Allowance(key.tokens_per_minute) if key.tokens_per_minute else None,
        )


class Accounts:
    """What every key has used; a key whose limits change begins afresh."""

    def __init__(self) -> None:
        self._accounts: dict[Key, Account] = {}

    def admit(self, key: Key) -> int:
        """0, and a request is counted as running; or the seconds to wait."""
        account = self._accounts.setdefault(key, Account.of(key))
        if key.concurrent and account.running >= key.concurrent:
            return 1
        waits = [allowance.wait_seconds(1) for allowance in (account.requests, account.tokens) if allowance]
        if longest := max(waits, default=0.0):
            return math.ceil(longest)
        account.running += 1
        if account.requests:
            account.requests.take(1)
        return 0

    def settle(self, key: Key, tokens: int) -> None:
        """A request that was let in has ended, having read and written `tokens`."""
        account = self._accounts[key]
        account.running -= 1
        if account.tokens:
            account.tokens.take(tokens)


class Failures:
    """Wrong keys per address. A right key passes whatever others at its address tried, so that nobody can be locked out."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._addresses: dict[str, Allowance] = {}

    def wait_seconds(self, address: str) -> int:
        """Count a failure: 0 while there are few, else the seconds to wait."""
        if len(self._addresses) >= MOST_ADDRESSES:
            self._addresses.clear()
        allowance = self._addresses.setdefault(address, Allowance(self.per_minute))
        if wait := allowance.wait_seconds(1):
            return math.ceil(wait)
        allowance.take(1)
        return 0
