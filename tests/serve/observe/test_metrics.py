from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm.serve.engine.engine import Load
from llm.serve.engine.generation import Chunk, Finished, Generation, Scored, Step
from llm.serve.engine.sampling import Sampling
from llm.serve.observe.metrics import MAX_VERSIONS, Metrics

CHAT = ("chat", "3")


def read(metrics: Metrics) -> Callable[..., float]:
    """A look at the figures as a scraper takes it: value of a sample by name and labels."""
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }

    def value(name: str, **labels: Any) -> float:
        return found.get((name, tuple(sorted(labels.items()))), math.nan)

    return value


def generation(tokens: int, reason: Any = "stop") -> Generation:
    """One that a loop has finished."""
    found = Generation([1, 2, 3], Sampling(max_tokens=tokens))
    found.queue_seconds = 0.25
    for _ in range(tokens):
        found.put(Chunk("a", (Scored(7),)))
    found.put(Chunk("", (), reason))
    return found


def idle() -> Load:
    return Load(0, 0, 1, 0, 1)


def test_engine_events_are_counted_by_model_and_version() -> None:
    metrics = Metrics()
    metrics.watched(CHAT, Step("prefill", 1, 3, 0.02))
    for rows in (1, 4, 4):
        metrics.watched(CHAT, Step("decode", rows, rows, 0.003))
    for tokens, reason in ((1, "stop"), (5, "length"), (5, "length")):
        metrics.watched(CHAT, Finished(generation(tokens, reason)))
    value, labels = read(metrics), {"model": "chat", "version": "3"}
    assert value("trainyard_step_duration_seconds_count", kind="prefill", **labels) == 1
    assert value("trainyard_step_duration_seconds_sum", kind="decode", **labels) == pytest.approx(0.009)
    assert value("trainyard_batch_size_sum", kind="decode", **labels) == 9
    assert value("trainyard_batch_size_bucket", kind="decode", le="1.0", **labels) == 1
    assert value("trainyard_request_prompt_tokens_sum", **labels) == 9
    assert value("trainyard_request_generation_tokens_sum", **labels) == 11
    assert value("trainyard_time_to_first_token_seconds_count", **labels) == 3
    assert value("trainyard_inter_token_latency_seconds_count", **labels) == 2  # one token has none between
    assert value("trainyard_request_queue_time_seconds_sum", **labels) == 0.75
    assert value("trainyard_generations_total", finished_reason="length", **labels) == 2


def test_an_answer_that_never_began_has_no_times() -> None:
    metrics, failed = Metrics(), Generation([1], Sampling(max_tokens=1))
    failed.error = RuntimeError("no")
    metrics.finished(CHAT, failed)
    value, labels = read(metrics), {"model": "chat", "version": "3"}
    assert value("trainyard_generations_total", finished_reason="error", **labels) == 1
    assert math.isnan(value("trainyard_time_to_first_token_seconds_count", **labels))


def test_loads_are_read_when_somebody_looks() -> None:
    metrics, load = Metrics(), [Load(2, 1, 16, 300, 4_000)]
    metrics.serve({CHAT: lambda: load[0]})
    labels = {"model": "chat", "version": "3"}
    assert read(metrics)("trainyard_num_requests_running", **labels) == 2
    load[0] = Load(0, 0, 16, 0, 4_000)
    assert read(metrics)("trainyard_num_requests_running", **labels) == 0
    assert read(metrics)("trainyard_kv_cache_total_tokens", **labels) == 4_000
    metrics.serve({})
    assert math.isnan(read(metrics)("trainyard_num_requests_running", **labels))


def test_labels_are_bounded_whatever_is_asked_for() -> None:
    metrics = Metrics()
    metrics.serve({CHAT: idle})
    metrics.ended("/v1/completions", "chat", 200, 0.1)
    before = len(metrics.text())
    for number in range(1_000):
        metrics.ended("other", f"model-{number}", 404, 0.1)
    assert b"model-" not in metrics.text()
    assert len(metrics.text()) < before + 3_000
    assert read(metrics)("trainyard_http_requests_total", route="other", model="", status="404") == 1_000
    assert read(metrics)("trainyard_errors_total", kind="not_found", model="") == 1_000


def test_figures_of_versions_long_gone_are_dropped() -> None:
    metrics = Metrics()
    for number in range(3 * MAX_VERSIONS):
        version = ("chat", str(number))
        metrics.serve({version: idle})
        metrics.finished(version, generation(2))
    value = read(metrics)
    kept = [n for n in range(3 * MAX_VERSIONS) if value("trainyard_request_prompt_tokens_count", model="chat", version=str(n)) == 1]
    assert kept == list(range(2 * MAX_VERSIONS, 3 * MAX_VERSIONS))
    assert value("trainyard_generations_total", model="chat", version="0", finished_reason="stop") != 1


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.ended("/health", "", 200, 0.1)
    assert read(second)("trainyard_http_requests_total", route="/health", model="", status="200") != 1


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request"), (418, "invalid_request"), (429, "overloaded"), (499, "client_left"), (507, "internal")]
)
def test_errors_have_a_kind(status: int, kind: str) -> None:
    metrics = Metrics()
    metrics.ended("/v1/completions", "", status, 0.1)
    metrics.ended("/v1/completions", "", 200, 0.1, outcome=status)
    assert read(metrics)("trainyard_errors_total", kind=kind, model="") == 2


def test_the_process_is_measured() -> None:
    assert read(Metrics())("process_resident_memory_bytes") > 1e7
