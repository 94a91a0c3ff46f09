from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from llm.errors import DependencyError
from llm.serve.engine.generation import Chunk, Generation, Scored
from llm.serve.engine.sampling import Sampling
from llm.serve.observe.record import Record
from llm.serve.observe.spans import Spans, configured, spans

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def write(exporter: InMemorySpanExporter) -> Iterator[Spans]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield spans(provider)
    provider.shutdown()


def answered() -> Record:
    record = Record(method="POST", route="/v1/chat/completions", status=200, model="chat", version="3", prompt_tokens=5, seconds=0.5)
    generation = Generation([1] * 5, Sampling(max_tokens=2))
    generation.cached_tokens = 4
    generation.put(Chunk("a", (Scored(7),)))
    generation.put(Chunk("b", (Scored(8),), "length"))
    record.generations.append(generation)
    return record


def test_a_request_is_a_span_with_the_conventions_names(write: Spans, exporter: InMemorySpanExporter) -> None:
    record = answered()
    write(record, {})
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind, span.parent) == ("chat chat", SpanKind.SERVER, None)
    assert (span.start_time, span.end_time) == (record.began_ns, record.began_ns + 500_000_000)
    found = dict(span.attributes or {})
    assert found.pop("gen_ai.response.time_to_first_chunk") == record.first_token_seconds
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "trainyard",
        "gen_ai.request.model": "chat",
        "gen_ai.response.model": "chat@3",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "trainyard.request.id": record.id,
    }


def test_names_are_those_of_the_conventions_package() -> None:
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
    from opentelemetry.semconv.attributes import error_attributes, http_attributes

    from llm.serve.observe.spans import attributes

    known = {
        value
        for module in (gen_ai_attributes, error_attributes, http_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    record = answered()
    record.status = 500
    assert {name for name in attributes(record) if not name.startswith("trainyard.")} <= known


def test_a_span_hangs_below_its_callers(write: Spans, exporter: InMemorySpanExporter) -> None:
    write(answered(), {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    write(answered(), {"traceparent": "nonsense"})
    first, second = exporter.get_finished_spans()
    assert first.parent is not None
    assert (f"{first.parent.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, "b7ad6b7169203331")
    assert second.parent is None


def test_a_failure_is_one(write: Spans, exporter: InMemorySpanExporter) -> None:
    write(Record(method="POST", route="/v1/completions", status=503), {})
    write(Record(method="POST", route="/v1/completions", status=400), {})
    write(Record(method="POST", route="/v1/completions", status=200, late_status=504), {})
    failed, refused, late = exporter.get_finished_spans()
    assert [each.status.status_code for each in (failed, refused, late)] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.ERROR]
    assert [dict(each.attributes or {})["error.type"] for each in (failed, late)] == ["503", "504"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_off_unless_an_exporter_is_named(environment: dict[str, str]) -> None:
    assert configured(environment) is None


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk.resources", "opentelemetry.exporter"])
def test_a_package_that_is_missing_is_said(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)  # what was imported before would be found
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DependencyError, match="OTEL_EXPORTER_OTLP_ENDPOINT; pip install opentelemetry-sdk"):
        configured({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})


def test_an_exporter_that_is_not_installed_is_said() -> None:
    with pytest.raises(DependencyError, match="pip install .*opentelemetry-exporter-otlp-proto-http"):
        configured({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"})
