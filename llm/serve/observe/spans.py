"""Spans of requests for OpenTelemetry, where the environment names an exporter; otherwise none.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai and .../http for the names of attributes,
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables for those of variables.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from llm.errors import DependencyError
from llm.serve.observe.record import Record

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}

Spans = Callable[[Record, Mapping[str, str]], None]  # called with a request that ended, and its headers


def configured(environment: Mapping[str, str] = os.environ) -> Any:
    """A provider of tracers that sends to where the environment says; None if it says nowhere, or to be silent.

    Raises: DependencyError if it says where and what sends there isn't installed.
    """
    silent = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    if silent or not any(environment.get(name) for name in ENDPOINTS):
        return None
    try:
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        value = next(name for name in ENDPOINTS if environment.get(name))
        remedy = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or unset it"
        raise DependencyError("no exporter for spans", value=value, remedy=remedy) from error
    provider = TracerProvider(resource=Resource.create({"service.name": environment.get("OTEL_SERVICE_NAME", "trainyard")}))
    provider.add_span_processor(BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return provider


def spans(provider: Any) -> Spans:
    """What writes a span for each request that ended, below the one that its `traceparent` header names."""
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("trainyard")
    propagator = TraceContextTextMapPropagator()

    def write(record: Record, headers: Mapping[str, str]) -> None:
        operation = OPERATIONS.get(record.route, record.method)
        span = tracer.start_span(
            f"{operation} {record.model or record.route}",
            context=propagator.extract({"traceparent": headers.get("traceparent", "")}),
            kind=SpanKind.SERVER,
            start_time=record.began_ns,
            attributes=attributes(record),
        )
        if record.outcome >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(record.began_ns + int(record.seconds * 1e9))

    return write


def attributes(record: Record) -> dict[str, Any]:
    """Figures and names of a request under the conventions' names, those that are known."""
    found = {
        "gen_ai.operation.name": OPERATIONS.get(record.route),
        "gen_ai.provider.name": "trainyard" if record.model else None,
        "gen_ai.request.model": record.model or None,
        "gen_ai.response.model": f"{record.model}@{record.version}" if record.model else None,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "gen_ai.usage.input_tokens": record.prompt_tokens or None,
        "gen_ai.usage.output_tokens": record.completion_tokens if record.generations else None,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens or None,
        "gen_ai.response.time_to_first_chunk": record.first_token_seconds,
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": str(record.outcome) if record.outcome >= 400 else None,
        "trainyard.request.id": record.id,
    }
    return {name: value for name, value in found.items() if value is not None}
