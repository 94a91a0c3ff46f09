"""Which models are served, and which version of one answers a request.

A champion is followed: when the registry names another version, it is loaded beside the live one, tried on a share of
the requests (canary.py), and takes all of them or none. Requests that run keep the version that they began with.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llm.artifact import Store
from llm.errors import ArtifactError, RecipeError, TrainyardError
from llm.run import home
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Event
from llm.serve.engine.sampling import Sampling
from llm.serve.models.canary import Tally, judge, place
from llm.serve.models.config import ModelsConfig
from llm.serve.models.folder import ModelFolder
from llm.serve.models.release import Release, next_champion, resolve
from llm.serve.models.served import Arm, Delay, Model, Served, Trial, load, put_away
from llm.serve.models.spec import ModelSpec

UNNAMED = "trainyard"  # the id of a folder that was given none
REMEMBERED = 1000  # changes
CLOSE_SECONDS = 5  # that closing waits for what the follower is at

log = logging.getLogger(__name__)


class UnknownModel(ArtifactError):
    """No model of this id is served."""


What = Literal["loaded", "refused", "on trial", "promoted", "rolled back", "withdrawn"]


@dataclass(frozen=True)
class Change:
    """What happened to a version of a model, when (seconds since 1970) and why."""

    at: float
    model_id: str
    version: str
    what: What
    why: str = ""


class Catalogue:
    """The served models by id. Safe to use from several threads."""

    def __init__(self, models: Sequence[Model], config: ModelsConfig, store: Store) -> None:
        self.changes: deque[Change] = deque(maxlen=REMEMBERED)
        self._models, self._config, self._store = {model.model_id: model for model in models}, config, store
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._watch: Callable[[Served, Event], None] | None = None
        self._tell: Callable[[Change], None] = lambda change: None
        self._follower = threading.Thread(target=self._follow, name="follow champions", daemon=True)
        for served in self.loaded():
            self._note("loaded", served.release, served.model_id)
        if self._followed():
            self._follower.start()

    @classmethod
    def of(cls, engine: Engine) -> Catalogue:
        """A catalogue of one model that is loaded already."""
        served = Served(engine, Release(engine.model_id, "1", engine.facts.path))
        return cls([Model(engine.model_id, [Arm(1.0, served)])], ModelsConfig(), Store(home()))

    @classmethod
    def open(cls, specs: Sequence[ModelSpec], config: ModelsConfig | None = None, *, store: Store | None = None) -> Catalogue:
        """Load all that the specifications name, and follow the champions among it.

        Raises: RecipeError if two specifications share an id; PromotionError for an unknown name, alias or version;
        ArtifactError for a model that can't be served.
        """
        config, store = config or ModelsConfig(), store or Store(home())
        released = [(spec, [resolve(weighted.source, store) for weighted in spec.sources]) for spec in specs]
        named = [(spec.model_id or releases[0].name or UNNAMED, spec, releases) for spec, releases in released]
        names = [model_id for model_id, _, _ in named]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError("two models have one id", value=twice[0], remedy="name them: first=…, second=…")
        return cls([_model(model_id, spec, releases, config, store) for model_id, spec, releases in named], config, store)

    @contextmanager
    def lease(self, model_id: str, *, key: str = "") -> Iterator[Served]:
        """The version that answers this request; equal keys meet the same one. It stays open for the length of the block.

        Raises: UnknownModel if no model of this id is served.
        """
        with self._lock:
            if model_id not in self._models:
                raise UnknownModel("model is not served here", value=model_id[:100], remedy=f"ask for {', '.join(self._models)}")
            key = key or uuid.uuid4().hex
            served = self._models[model_id].arm(key).answering(key, self._config.canary.share)
            served.take()
        try:
            yield served
        finally:
            served.give_back()

    def mirror(self, served: Served, prompt: list[int], sampling: Sampling, *, key: str = "") -> None:
        """Send a copy of a request to the model's shadow, if it has one and the key falls into its share.

        Nobody reads the answer; a shadow that is busy, reads otherwise or can't do what is asked is left alone.
        """
        model, limits = self._models[served.model_id], self._config.shadow
        if model.shadow and place(key or uuid.uuid4().hex, "shadow") < model.shadow_share and model.shadow.reads_as(served):
            engine = model.shadow.engine
            if engine.load().waiting < limits.waiting:
                with suppress(TrainyardError):
                    engine.submit(prompt, sampling, deadline_seconds=limits.seconds, client="shadow")

    def report(self, served: Served, *, ok: bool, first_token_seconds: float | None = None) -> None:
        """Say how a request ended: `ok` is false if the model failed, not if the request was wrong."""
        with self._lock:
            served.tally.add(ok=ok, first_token_seconds=first_token_seconds)
            for arm in self._models[served.model_id].arms:
                if served in arm.loaded():
                    self._settle(arm)

    def entries(self) -> list[tuple[str, int, ModelFolder]]:
        """Id, time of its loading in seconds since 1970, and facts of every served model."""
        with self._lock:
            return [(model.model_id, model.created, model.arms[0].live.engine.facts) for model in self._models.values()]

    def loaded(self) -> list[Served]:
        """All that is in memory: live versions, versions on trial, shadows."""
        with self._lock:
            return [served for model in self._models.values() for served in model.loaded()]

    def watch(self, watch: Callable[[Served, Event], None], tell: Callable[[Change], None] = lambda change: None) -> None:
        """Have every engine, also those loaded later, tell of its steps and finished generations, and hear of changes."""
        with self._lock:
            self._watch, self._tell = watch, tell
            for served in self.loaded():
                served.engine.watch = partial(watch, served)

    def ready(self) -> bool:
        """Whether every model is loaded, which it is until the catalogue is closed."""
        return bool(self._models) and not self._closed.is_set()

    def close(self) -> None:
        """Stop following, also in the middle of a rehearsal, and free every engine after its last request."""
        self._closed.set()
        if self._follower.is_alive():
            self._follower.join(CLOSE_SECONDS)
        for served in self.loaded():
            served.close()

    def _followed(self) -> list[tuple[Model, Arm]]:
        return [(model, arm) for model in self._models.values() for arm in model.arms if arm.live.release.follows]

    def _follow(self) -> None:
        while not self._closed.wait(self._config.poll_seconds):
            for model, arm in self._followed():
                try:
                    self._catch_up(model, arm)
                except TrainyardError as error:  # the registry is away: what is live stays live
                    log.warning("%s: %s", model.model_id, error)
                except Exception:
                    log.exception("%s: its champion could not be followed", model.model_id)

    def _catch_up(self, model: Model, arm: Arm) -> None:
        """Bring the champion of now on trial, unless it is there or has failed already."""
        with self._lock:
            self._settle(arm)
        champion = next_champion(arm.live.release.follows, self._store)
        wanted = champion.digest if champion else ""
        if arm.trial and arm.trial.served.release.digest != wanted:
            self._end_trial(arm, "withdrawn", "it is no longer champion")
        if champion is None or arm.trial or wanted in (arm.live.release.digest, arm.refused) or (arm.delay and arm.delay.holds(wanted)):
            return
        try:
            served = load(champion, model.model_id, self._config, stop=self._closed)
        except Exception as error:  # noqa: BLE001 - libraries raise what they like where memory or storage fails them
            if not self._closed.is_set():
                self._put_off(model, arm, champion, error)
            return
        with self._lock:
            if self._closed.is_set():
                served.close()
                return
            if self._watch:
                served.engine.watch = partial(self._watch, served)
            arm.live.tally, arm.trial, arm.refused, arm.delay = Tally(), Trial(served), "", None
            self._note("on trial", champion, model.model_id)

    def _put_off(self, model: Model, arm: Arm, champion: Release, error: Exception) -> None:
        """Refuse a version for good if it can't be served; try it again later if what failed may pass."""
        if isinstance(error, TrainyardError) and not error.transient:
            arm.refused = champion.digest
            self._note("refused", champion, model.model_id, str(error))
            return
        arm.delay = Delay.after(arm.delay, champion.digest, self._config)
        told = "%s version %s can't be loaded now (%s: %s): trying again in %g s"
        log.warning(told, model.model_id, champion.version, type(error).__name__, error, arm.delay.seconds, exc_info=error)

    def _settle(self, arm: Arm) -> None:
        """End a trial that is decided."""
        if arm.trial is None:
            return
        verdict, why = judge(arm.live.tally, arm.trial.served.tally, time.monotonic() - arm.trial.began, self._config.canary)
        if verdict != "on trial":
            self._end_trial(arm, verdict, why)

    def _end_trial(self, arm: Arm, verdict: What, why: str) -> None:
        with self._lock:
            if arm.trial is None:
                return
            tried, arm.trial = arm.trial.served, None
            leaving = tried
            if verdict == "promoted":
                leaving, arm.live = arm.live, tried
            if verdict == "rolled back":
                arm.refused = tried.release.digest
        self._note(verdict, tried.release, tried.model_id, why)
        put_away(leaving, why if verdict == "rolled back" else "", self._store)

    def _note(self, what: What, release: Release, model_id: str, why: str = "") -> None:
        level = logging.WARNING if what in ("refused", "rolled back") else logging.INFO
        log.log(level, "%s version %s: %s%s", model_id, release.version, what, why and f" ({why})")
        self.changes.append(Change(time.time(), model_id, release.version, what, why))
        self._tell(self.changes[-1])


def _model(model_id: str, spec: ModelSpec, releases: list[Release], config: ModelsConfig, store: Store) -> Model:
    arms = [Arm(weighted.weight, load(release, model_id, config)) for weighted, release in zip(spec.sources, releases, strict=True)]
    if spec.shadow is None:
        return Model(model_id, arms)
    shadow = load(resolve(spec.shadow.source, store), model_id, config)
    if not shadow.reads_as(arms[0].live):
        raise ArtifactError("shadow has another tokenizer", value=spec.shadow.source.text, remedy="shadow a model with the same tokenizer")
    return Model(model_id, arms, shadow, spec.shadow.weight)
