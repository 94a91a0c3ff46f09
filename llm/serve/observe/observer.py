"""One object that the endpoint and the catalogue tell what happens: figures, a line per request, spans, samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

from prometheus_client import start_http_server
from starlette.types import Scope

from llm.errors import CapacityError
from llm.serve.engine.engine import Engine
from llm.serve.observe import log
from llm.serve.observe.config import ObserveConfig
from llm.serve.observe.metrics import Metrics, handler
from llm.serve.observe.record import PLACE, Record
from llm.serve.observe.samples import Samples
from llm.serve.observe.spans import configured, spans

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
HOST = "127.0.0.1"


class Observer:
    """Watches one server. Safe to use from several threads.

    Raises: CapacityError if the port of the metrics is taken; ArtifactError if the folder of the samples can't be written.
    """

    def __init__(self, config: ObserveConfig | None = None, *, provider: Any = None) -> None:
        self.config = config = config or ObserveConfig()
        self.metrics = Metrics()
        self.samples = Samples(config.samples, self.metrics) if config.samples.folder else None
        self._provider = provider or configured()
        self._spans = spans(self._provider) if self._provider else None
        self._exposition = _exposed(self.metrics, config.metrics_port) if config.metrics_port else None

    def serves(self, engine: Engine, version: str) -> None:
        """An engine is about to take requests under this version."""
        self.metrics.serve((engine.model_id, version), engine.load)
        engine.watch = handler(self.metrics, (engine.model_id, version))
        self.happened(engine.model_id, version, "loaded")

    def leaves(self, engine: Engine, version: str) -> None:
        """An engine has taken its last request."""
        self.metrics.leave((engine.model_id, version))
        self.happened(engine.model_id, version, "closed")

    def happened(self, model_id: str, version: str, event: str) -> None:
        """A version of a served model was loaded, closed, tried (canary), promoted, rolled_back or refused."""
        self.metrics.happened(model_id, event)
        level = logging.WARNING if event in ("rolled_back", "refused") else logging.INFO
        log.events.log(level, event, extra={"facts": {"model": model_id, "version": version}})

    def request_began(self, scope: Scope) -> Record:
        """The record of a request, which handlers find with `record_of`."""
        record: Record = scope.setdefault(PLACE, Record())
        record.method = scope["method"] if scope["method"] in METHODS else "other"
        return record

    def request_ended(self, record: Record, scope: Scope, routes: Collection[str]) -> None:
        """The last byte of an answer is out, or its client is gone."""
        record.seconds = time.monotonic() - record.began
        record.route = _route(scope, routes)
        record.model = self.metrics.model(record.model)
        record.version = record.version if record.model else ""
        self.metrics.ended(record.route, record.model, record.status, record.seconds, broken=bool(record.error))
        log.requests.log(
            logging.ERROR if record.error or record.status >= 500 else logging.INFO, "request", extra={"facts": record.facts()}
        )
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
