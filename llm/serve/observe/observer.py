"""One object that the endpoint and the catalogue tell what happens: figures, a line per request, spans, samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from prometheus_client import start_http_server
from starlette.types import Scope

from llm.errors import CapacityError, RecipeError
from llm.serve.engine.engine import Load
from llm.serve.models.catalogue import Catalogue, Change
from llm.serve.observe import log
from llm.serve.observe.config import ObserveConfig
from llm.serve.observe.log import failure
from llm.serve.observe.metrics import Metrics, Version
from llm.serve.observe.record import PLACE, Record
from llm.serve.observe.samples import Exchange, Samples
from llm.serve.observe.spans import configured, spans

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
HOST = "127.0.0.1"
WHOLE = ("stop", "length")  # how an answer ends that wasn't broken off


class Observer:
    """Watches one server. Safe to use from several threads.

    Raises: CapacityError if the port of the metrics is taken; ArtifactError if the folder of the samples can't be written;
    DependencyError if the environment asks for spans and what sends them isn't installed.
    """

    def __init__(self, config: ObserveConfig | None = None, *, provider: Any = None) -> None:
        self.config = config = config or ObserveConfig()
        self.metrics = Metrics()
        self.samples = Samples(config.samples, self.metrics) if config.samples.folder else None
        self._provider = provider or configured()
        self._spans = spans(self._provider) if self._provider else None
        self._exposition = _exposed(self.metrics, config.metrics_port) if config.metrics_port else None

    def follow(self, catalogue: Catalogue) -> None:
        """Watch the engines of a catalogue, and what becomes of its versions."""

        def loaded() -> dict[Version, Callable[[], Load]]:
            return {(served.model_id, served.version): served.engine.load for served in catalogue.loaded()}

        def changed(change: Change) -> None:
            self.metrics.serve(loaded())
            self.metrics.happened(change.model_id, change.what)

        self.metrics.serve(loaded())
        catalogue.watch(lambda served, event: self.metrics.watched((served.model_id, served.version), event), changed)

    def request_began(self, scope: Scope) -> Record:
        """The record of a request, which handlers find with `record_of`."""
        record: Record = scope.setdefault(PLACE, Record())
        record.method = scope["method"] if scope["method"] in METHODS else "other"
        return record

    def answered(self, record: Record) -> None:
        """The last byte of an answer is about to go out. Requests for several texts at once are no samples."""
        generation = record.generations[0] if len(record.generations) == 1 else None
        if self.samples and record.messages and generation and generation.finish_reason in WHOLE:
            names = (record.answer_id, record.model, record.version, record.kind)
            self.samples.answered(Exchange(*names, record.messages, generation.text, generation.finish_reason))

    def request_ended(self, record: Record, scope: Scope, routes: Collection[str]) -> None:
        """The last byte of an answer is out, or its client is gone."""
        record.seconds = time.monotonic() - record.began
        record.route = _route(scope, routes)
        record.error = record.error or next(map(failure, _faults(record)), "")
        record.model = self.metrics.model(record.model)
        record.version = record.version if record.model else ""
        self.metrics.ended(record.route, record.model, record.status, record.seconds, outcome=record.late_status)
        level = logging.ERROR if record.error or record.outcome >= 500 else logging.INFO
        log.requests.log(level, "request", extra={"facts": record.facts()})
        if self._spans:
            self._spans(record, {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})

    def close(self) -> None:
        """Write out what is waiting."""
        if self.samples:
            self.samples.close()
        if self._provider:
            self._provider.shutdown()
        if self._exposition:
            self._exposition.shutdown()
            self._exposition.server_close()


def _faults(record: Record) -> Iterator[Exception]:
    """What failed inside; that a client asked for what can't be done is no fault."""
    return (each.error for each in record.generations if each.error and not isinstance(each.error, RecipeError))


def _route(scope: Scope, routes: Collection[str]) -> str:
    """The route that a path took, as the server writes it: what a client writes is no label."""
    taken = getattr(scope.get("route"), "path", None)
    return taken or (scope["path"] if scope["path"] in routes else "other")


def _exposed(metrics: Metrics, port: int) -> Any:
    """A server of the figures alone, for whoever may look at this machine's own ports."""
    try:
        server, _ = start_http_server(port, addr=HOST, registry=metrics.registry)
    except OSError as error:
        value = f"{HOST}:{port} ({error.strerror})"
        raise CapacityError("the port of the metrics can't be opened", value=value, remedy="set observe.metrics_port to another") from error
    return server
