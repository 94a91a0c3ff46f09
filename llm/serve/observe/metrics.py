"""Figures of a running server for Prometheus: their names, units and labels. Each server has a registry of its own.

A label's values are bounded: models are those that are served, routes those that exist, and the rest are small tables.

Source: names as in vLLM, https://docs.vllm.ai/en/latest/usage/metrics.html; units and suffixes as in
https://prometheus.io/docs/practices/naming.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from llm.serve.engine.engine import Load
from llm.serve.engine.generation import Event, Generation, Step
from llm.serve.models.catalogue import What

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
MAX_VERSIONS = 64  # versions whose figures are held; those of the longest gone are dropped beyond it
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ERRORS = {
    401: "unauthenticated", 403: "forbidden", 404: "not_found", 408: "timeout", 413: "too_large", 429: "overloaded", 431: "too_large",
    499: "client_left", 500: "internal", 503: "unavailable", 504: "deadline",
}  # fmt: skip
LOADS = {
    "running": ("num_requests_running", "answers that are being written"),
    "waiting": ("num_requests_waiting", "answers that wait for a slot"),
    "slots": ("num_slots", "answers that can be written at once"),
    "kv_used_tokens": ("kv_cache_used_tokens", "tokens reserved for running answers: their prompts and all that they may write"),
    "kv_total_tokens": ("kv_cache_total_tokens", "tokens that can be reserved"),
}

Version = tuple[str, str]  # a model's id and its version


class Metrics:
    """Counts and distributions, and at each look the load of every engine. Safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Loads(self._loads))
        self._served: dict[Version, Callable[[], Load] | None] = {}  # None where it is gone
        self._lock = threading.Lock()
        count, spread = self._counter, self._histogram
        self.requests = count("http_requests", "requests that ended", "route", "model", "status")
        self.request_seconds = spread("http_request_duration_seconds", "from the first byte in to the last byte out", SECONDS, "route")
        self.errors = count("errors", "requests that failed", "kind", "model")
        self.events = count("model_events", "what became of versions of models", "model", "event")
        self.samples = count("samples", "answers and ratings that were kept, or lost to a full queue or disk", "outcome")
        self.feedback = count("feedback", "ratings by users", "rating", "model")
        model = ("model", "version")
        self.first_token = spread("time_to_first_token_seconds", "from submission to the first token", SECONDS, *model)
        self.inter_token = spread("inter_token_latency_seconds", "mean between tokens of an answer, from its second on", SECONDS, *model)
        self.queue = spread("request_queue_time_seconds", "from submission to a slot", SECONDS, *model)
        self.answer = spread("e2e_request_latency_seconds", "from submission to the last token", SECONDS, *model)
        self.step = spread("step_duration_seconds", "one pass through the model", SECONDS, *model, "kind")
        self.batch = spread("batch_size", "answers that share one pass through the model", ROWS, *model, "kind")
        self.prompt = spread("request_prompt_tokens", "tokens of a prompt", TOKENS, *model)
        self.generated = spread("request_generation_tokens", "tokens of an answer", TOKENS, *model)
        self.cached = count("prompt_cached_tokens", "tokens of prompts that were not read again", *model)
        self.answers = count("generations", "answers that ended", *model, "finished_reason")
        spreads = (self.first_token, self.inter_token, self.queue, self.answer, self.step, self.batch, self.prompt, self.generated)
        self._by_version: tuple[Counter | Histogram, ...] = (*spreads, self.cached, self.answers)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)

    def serve(self, loads: Mapping[Version, Callable[[], Load]]) -> None:
        """Which versions are served now. Counts of others stay for a while."""
        with self._lock:
            gone = {version: None for version in self._served if version not in loads}
            dropped = list(gone)[: max(0, len(gone) + len(loads) - MAX_VERSIONS)]
            self._served = {version: None for version in gone if version not in dropped} | dict(loads)
        for metric in self._by_version:
            for model, version in dropped:
                metric.remove_by_labels({"model": model, "version": version})

    def model(self, model_id: str) -> str:
        """The label of a model: empty for one that is not served, however it is called."""
        with self._lock:
            return model_id if any(model_id == each for each, _ in self._served) else ""

    def watched(self, version: Version, event: Event) -> None:
        """An engine of this version tells something."""
        if isinstance(event, Step):
            self.stepped(version, event)
        else:
            self.finished(version, event.generation)

    def stepped(self, version: Version, step: Step) -> None:
        """The model ran once."""
        self.step.labels(*version, step.kind).observe(step.seconds)
        self.batch.labels(*version, step.kind).observe(step.rows)

    def finished(self, version: Version, generation: Generation) -> None:
        """An answer ended. Times that it never reached are not counted."""
        later = generation.completion_tokens - 1
        between = None
        if generation.seconds is not None and generation.first_token_seconds is not None and later > 0:
            between = (generation.seconds - generation.first_token_seconds) / later
        observed = {
            self.prompt: generation.prompt_tokens,
            self.generated: generation.completion_tokens,
            self.queue: generation.queue_seconds,
            self.first_token: generation.first_token_seconds,
            self.inter_token: between,
            self.answer: generation.seconds,
        }
        for metric, value in observed.items():
            if value is not None:
                metric.labels(*version).observe(value)
        self.cached.labels(*version).inc(generation.cached_tokens)
        self.answers.labels(*version, "error" if generation.error else generation.finish_reason or "").inc()

    def ended(self, route: str, model: str, status: int, seconds: float, *, outcome: int | None = None) -> None:
        """A request is answered, or failed; `outcome` is as what, where that came after the status had gone out."""
        model = self.model(model)
        self.requests.labels(route, model, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        if (outcome or status) >= 400:
            self.errors.labels(error_kind(outcome or status), model).inc()

    def happened(self, model: str, what: What) -> None:
        """A version was loaded, tried, promoted or rolled back."""
        self.events.labels(self.model(model), what.replace(" ", "_")).inc()

    def _loads(self) -> list[tuple[Version, Load]]:
        with self._lock:
            served = list(self._served.items())
        return [(version, load()) for version, load in served if load]

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"trainyard_{name}", documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"trainyard_{name}", documentation, labels, registry=self.registry, buckets=buckets)


def error_kind(status: int) -> str:
    """What went wrong, in a word out of few."""
    return ERRORS.get(status) or ("invalid_request" if status < 500 else "internal")


class _Loads(Collector):
    """Gauges that are read when somebody looks."""

    def __init__(self, loads: Callable[[], list[tuple[Version, Load]]]) -> None:
        self._read = loads

    def collect(self) -> Iterator[Metric]:
        loads = self._read()
        for attribute, (name, documentation) in LOADS.items():
            gauge = GaugeMetricFamily(f"trainyard_{name}", documentation, labels=("model", "version"))
            for version, load in loads:
                gauge.add_metric(version, getattr(load, attribute))
            yield gauge
