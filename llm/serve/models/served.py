"""Loaded versions of a model, and which of them a request meets."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from llm.artifact import Store
from llm.serve.engine.engine import Engine
from llm.serve.models.canary import Tally, place
from llm.serve.models.config import ModelsConfig
from llm.serve.models.rehearsal import rehearse, warm
from llm.serve.models.release import Release, hold, verify

log = logging.getLogger(__name__)


class Served:
    """An engine and the release that it runs. It is closed after its last lease, never during one."""

    def __init__(self, engine: Engine, release: Release) -> None:
        self.engine, self.release, self.tally = engine, release, Tally()
        self._leases, self._changed = 0, threading.Condition()

    @property
    def model_id(self) -> str:
        return self.engine.model_id

    @property
    def version(self) -> str:
        """What tells it from the others under this id: its number, and another model's name."""
        release = self.release
        return release.version if release.name in ("", self.model_id) else f"{release.name}@{release.version}"

    def take(self) -> None:
        """Keep the engine open until the lease is given back."""
        with self._changed:
            self._leases += 1

    def give_back(self) -> None:
        """End a lease."""
        with self._changed:
            self._leases -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for the last lease to end, then free the engine. Nobody may take another one."""
        with self._changed:
            self._changed.wait_for(lambda: self._leases == 0)
        self.engine.close()

    def reads_as(self, other: Served) -> bool:
        """Whether both have the same tokenizer, so that the ids of a prompt mean the same to them."""
        return self.engine.tokenizer.vocabulary.content == other.engine.tokenizer.vocabulary.content


def load(release: Release, model_id: str, config: ModelsConfig, *, stop: threading.Event | None = None) -> Served:
    """A release, loaded: its files verified, its first load rehearsed elsewhere, its first tokens written.

    Raises: ArtifactError if it can't be served; CapacityError if `stop` was set before its rehearsal was over.
    """
    verify(release)
    rehearse(release.folder, config.engine, config.load, stop=stop)
    served = Served(Engine(release.folder, model_id=model_id, config=config.engine), release)
    warm(served.engine)
    return served


@dataclass
class Trial:
    """A version that answers some of the requests of the one it may replace."""

    served: Served
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Delay:
    """When a version is tried again that could not be loaded for a reason that may pass."""

    digest: str
    seconds: float  # the pause
    until: float  # as time.monotonic() tells

    @classmethod
    def after(cls, before: Delay | None, digest: str, config: ModelsConfig) -> Delay:
        """The pause that begins now: twice the one before, if that was the same version's, up to a limit."""
        again = before is not None and before.digest == digest
        seconds = min(2 * before.seconds, config.retry_seconds) if before and again else config.poll_seconds
        return cls(digest, seconds, time.monotonic() + seconds)

    def holds(self, digest: str) -> bool:
        """Whether this version still has to wait."""
        return self.digest == digest and time.monotonic() < self.until


@dataclass
class Arm:
    """One source of a model and its weight: a live version, and at times one on trial."""

    weight: float
    live: Served
    trial: Trial | None = None
    refused: str = ""  # digest of a version that can't be served
    delay: Delay | None = None

    def answering(self, key: str, canary_share: float) -> Served:
        """The version that answers this key."""
        if self.trial and place(key, self.trial.served.version) < canary_share:
            return self.trial.served
        return self.live

    def loaded(self) -> list[Served]:
        return [self.live, *([self.trial.served] if self.trial else [])]


@dataclass
class Model:
    """What one id stands for."""

    model_id: str
    arms: list[Arm]
    shadow: Served | None = None
    shadow_share: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))

    def arm(self, key: str) -> Arm:
        """The arm that this key falls on: by weight, and always the same."""
        point = place(key, self.model_id) * sum(arm.weight for arm in self.arms)
        for arm in self.arms:
            point -= arm.weight
            if point < 0:
                return arm
        return max(self.arms, key=lambda arm: arm.weight)

    def loaded(self) -> list[Served]:
        """Everything that this id holds in memory."""
        return [served for arm in self.arms for served in arm.loaded()] + ([self.shadow] if self.shadow else [])


def put_away(served: Served, reason: str, store: Store) -> None:
    """Close a version in the background after its last lease; one that was rolled back is remembered first, if the store takes it."""

    def close() -> None:
        try:
            if reason:
                hold(served.release, reason, store)
        except Exception as error:
            told = "%s version %s was rolled back, but the store doesn't take that (%s: %s): a restart would try it again"
            log.exception(told, served.model_id, served.version, type(error).__name__, error)
        finally:
            served.close()

    threading.Thread(target=close, name=f"close {served.model_id} {served.version}", daemon=True).start()
