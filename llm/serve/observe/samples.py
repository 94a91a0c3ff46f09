"""Answers that are kept for retraining, if the operator wants that: a share of all, and those that users rated.

What is written is masked first, by the code that masks the corpus. Nothing is written where a client waits for tokens.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm.artifact import now
from llm.data.document import Document
from llm.data.filters.config import PersonalKind, PrivacyConfig
from llm.data.filters.privacy import mask
from llm.data.hashing import share
from llm.data.steps import Edited
from llm.errors import ArtifactError, CapacityError
from llm.serve.observe import log
from llm.serve.observe.config import SamplesConfig
from llm.serve.observe.metrics import Metrics
from llm.serve.observe.segments import Segments, forget

WAITING = 1_024  # jobs for the writer
REMEMBERED_CHARACTERS = 64_000_000
RATINGS = 8  # that one answer takes

Message = dict[str, str]


@dataclass(frozen=True)
class Exchange:
    """A prompt and its answer. A completion's prompt is the one message of a user."""

    id: str
    model: str
    version: str
    kind: str  # chat or completion
    messages: tuple[Message, ...]
    answer: str
    finish_reason: str = ""
    created: str = field(default_factory=now)

    @property
    def characters(self) -> int:
        return len(self.answer) + sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Rating:
    """What a user thinks of an answer, and what it should have been."""

    id: str
    rating: str  # up or down
    comment: str = ""
    correction: str = ""
    created: str = field(default_factory=now)


@dataclass
class Remembered:
    """An answer that can still be rated."""

    exchange: Exchange
    kept: bool = False  # it is on disk; the writer's side
    ratings: int = 0


class UnknownAnswer(ArtifactError):
    """No answer of this id is remembered."""


class Samples:
    """Keeps answers and ratings in a folder. Safe to use from several threads; one of its own writes.

    Raises: ArtifactError if the folder can't be made.
    """

    def __init__(self, config: SamplesConfig, metrics: Metrics) -> None:
        assert config.folder
        self.config, self._metrics = config, metrics
        folder = Path(config.folder).expanduser()
        try:
            self._segments = Segments(folder, segment_bytes=config.segment_bytes, max_bytes=config.max_bytes)
        except OSError as error:
            value = f"{config.folder} ({error.strerror})"
            raise ArtifactError("samples can't be kept", value=value, remedy="set observe.samples.folder to a folder of yours") from error
        self._remembered: OrderedDict[str, Remembered] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(WAITING)
        self._writer = threading.Thread(target=self._work, name="samples", daemon=True)
        self._writer.start()

    def answered(self, exchange: Exchange) -> None:
        """An answer went out; whether it is kept is drawn by its id. Never waits."""
        remembered = Remembered(exchange)
        with self._lock:
            self._remembered[exchange.id] = remembered
            self._characters += exchange.characters
            while len(self._remembered) > self.config.remembered_answers or self._characters > REMEMBERED_CHARACTERS:
                self._characters -= self._remembered.popitem(last=False)[1].exchange.characters
        if share(exchange.id, "traffic") < self.config.share:
            try:
                self._submit(lambda: self._keep(remembered))
            except CapacityError:
                self._metrics.samples.labels("lost").inc()

    def rated(self, rating: Rating) -> Future[None]:
        """A user rated an answer; done when that is on disk.

        Raises: UnknownAnswer if it isn't among the latest ones of this server; CapacityError if it has too many ratings, or the
        disk is too slow. The future raises OSError if the disk refuses.
        """
        with self._lock:
            remembered = self._remembered.get(rating.id)
            if remembered is None:
                raise UnknownAnswer("answer is not known", value=rating.id, remedy="rate an answer soon after it was given")
            if remembered.ratings >= RATINGS:
                raise CapacityError("answer has been rated too often", value=RATINGS, remedy="keep the last rating")
            done: Future[None] = self._submit(lambda: self._keep(remembered, rating))
            remembered.ratings += 1
        self._metrics.feedback.labels(rating.rating, remembered.exchange.model).inc()
        return done

    def forgotten(self, id: str) -> Future[int]:
        """Take an answer and its ratings out of the folder; done, with the number of lines, when they are gone.

        Raises: CapacityError if the disk is too slow.
        """
        with self._lock:
            if remembered := self._remembered.pop(id, None):
                self._characters -= remembered.exchange.characters
        return self._submit(lambda: forget(self._segments.folder, id))

    def close(self) -> None:
        """Write what is waiting."""
        if self._writer.is_alive():
            self._jobs.put(None)
            self._writer.join()

    def _submit(self, job: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            self._jobs.put_nowait((job, done))
        except queue.Full as error:
            raise CapacityError("samples wait for the disk", value=WAITING, remedy="try again") from error
        return done

    def _work(self) -> None:
        while entry := self._jobs.get():
            job, done = entry
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(job())
            except Exception as error:  # noqa: BLE001 - whoever waits gets it, and the next job its turn
                self._metrics.samples.labels("lost").inc()
                log.events.warning("samples_not_written", exc_info=error)
                done.set_exception(error)

    def _keep(self, remembered: Remembered, rating: Rating | None = None) -> None:
        """Write an answer unless it is there, and perhaps its rating."""
        lines = [] if remembered.kept else [{"record": "answer", **asdict(remembered.exchange)}]
        lines += [{"record": "rating", **asdict(rating)}] if rating else []
        self._segments.append([_masked(line, self.config.mask) for line in lines])
        remembered.kept = True
        self._metrics.samples.labels("kept").inc(len(lines))


def _masked(line: dict[str, Any], kinds: tuple[PersonalKind, ...]) -> dict[str, Any]:
    """The same without personal data and secrets in what people and models wrote."""
    written: dict[str, Any] = {name: masked(line[name], kinds) for name in ("answer", "comment", "correction") if name in line}
    if "messages" in line:
        written["messages"] = [{"role": each["role"], "content": masked(each["content"], kinds)} for each in line["messages"]]
    return line | written


def masked(text: str, kinds: tuple[PersonalKind, ...]) -> str:
    """The text with a placeholder for each finding, as the stage clean masks prose.

    Example:
        >>> masked("ask jo@example.org", ("email",))
        'ask <EMAIL>'
    """
    edited = mask(Document("", text, "traffic"), PrivacyConfig(mask=kinds))
    return edited.document.text if isinstance(edited, Edited) else text
