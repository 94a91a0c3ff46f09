"""What the routes have in common: the served models, the settings, and how busy the server is."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from llm.serve.endpoint.config import Settings
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.gate import Traffic
from llm.serve.endpoint.visit import Visit
from llm.serve.models.catalogue import Catalogue, UnknownModel
from llm.serve.models.served import Served
from llm.serve.observe.observer import Observer
from llm.serve.retrieval.retriever import Retriever


@dataclass(frozen=True)
class Service:
    """One server."""

    catalogue: Catalogue
    settings: Settings
    observer: Observer
    readings: threading.Semaphore  # how many more may begin
    retriever: Retriever | None = None
    traffic: Traffic = field(default_factory=Traffic)

    @classmethod
    def of(cls, catalogue: Catalogue, settings: Settings, observer: Observer | None = None) -> Service:
        """A server of a catalogue, with what its settings ask for."""
        observer = observer or Observer(settings.observe)
        observer.follow(catalogue)
        readings = threading.Semaphore(settings.limits.readings)
        return cls(catalogue, settings, observer, readings, Retriever.of(settings.retrieval, catalogue))

    def close(self) -> None:
        """Write out what waits, before anything that may take long; the catalogue stays open."""
        self.observer.close()
        if self.retriever:
            self.retriever.close()

    @property
    def ready(self) -> bool:
        return self.catalogue.ready() and not self.traffic.draining

    def patience_seconds(self, wanted: float | None) -> float:
        """How long a client that asks for `wanted` may wait."""
        longest = self.settings.limits.request_seconds
        return min(wanted or longest, longest)

    def lease(self, model_id: str, visit: Visit) -> Served:
        """The version of a model that answers this request, kept open until its end.

        Raises: ApiError if no such model is served.
        """
        try:
            served = visit.cleanup.enter(self.catalogue.lease(model_id, key=visit.record.id))
        except UnknownModel:
            ids = ", ".join(repr(id) for id, _, _ in self.catalogue.entries())
            message = f"the model {model_id[:64]!r} is not served here; served: {ids}"
            raise ApiError(404, message, param="model", code="model_not_found") from None
        visit.record.model, visit.record.version = model_id, served.version
        return served
