from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import uvicorn

from llm.errors import CapacityError
from llm.serve.observe import log

GITHUB = "ghp_" + "a1B2" * 9


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What the server logs, with the loggers as they were afterwards."""
    loggers = [logging.getLogger(name) for name in ("", "llm", "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(each.handlers[:], each.level, each.propagate) for each in loggers]
    uvicorn.Config("", port=0).configure_logging()  # what an earlier server of the same process leaves behind
    stream = io.StringIO()
    log.configure(stream)
    yield stream
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_its_facts(stream: io.StringIO) -> None:
    log.requests.info("request", extra={"facts": {"id": "req-1", "status": 200, "seconds": 0.25}})
    (line,) = lines(stream)
    time = line.pop("time")
    assert line == {"level": "info", "logger": "llm.serve.requests", "event": "request", "id": "req-1", "status": 200, "seconds": 0.25}
    assert str(time).endswith("+00:00")


def test_lines_cannot_be_forged(stream: io.StringIO) -> None:
    log.events.info('quiet\n{"level": "error", "event": "forged"}\x1b[2J')
    assert [line["level"] for line in lines(stream)] == ["info"]
    assert "\x1b" not in stream.getvalue()


def test_an_exception_leaves_its_kind_and_place_and_no_word_of_its_message(stream: io.StringIO) -> None:
    try:
        raise ValueError("the prompt was: tell me about canaries")
    except ValueError as error:
        log.events.warning("failed", exc_info=error)
    (line,) = lines(stream)
    assert str(line["error"]).startswith("ValueError at test_log.py:")
    assert "canaries" not in stream.getvalue()


def test_what_a_watcher_reports_says_why(stream: io.StringIO) -> None:
    log.events.warning("documents_not_indexed", exc_info=CapacityError("too much", value="9 bytes", remedy="raise it"))
    log.events.warning("samples_not_written", exc_info=OSError(28, "No space left on device"))
    logging.getLogger("llm.serve.endpoint").warning("a stream broke off", exc_info=CapacityError("too much", value="the prompt"))
    assert [line["error"] for line in lines(stream)] == [
        "CapacityError: too much: 9 bytes; raise it",
        "OSError: [Errno 28] No space left on device",
        "CapacityError",
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"token {GITHUB} was sent",
        f"Authorization: Bearer {GITHUB}",
        "authorization: bearer abcdefghijklmnop",
        "GET /v1/models?api_key=Zk93hAqP0sLw82mDfTq1",
        "Basic dXNlcjpwYXNzd29yZA==",
    ],
)
def test_tokens_are_masked_wherever_they_stand(stream: io.StringIO, text: str) -> None:
    logging.getLogger("uvicorn.error").warning("%s", text)
    log.events.info("seen", extra={"facts": {"model": text}})
    assert "<KEY>" in stream.getvalue()
    for secret in (GITHUB, "abcdefghijklmnop", "Zk93hAqP0sLw82mDfTq1", "dXNlcjpwYXNzd29yZA=="):
        assert secret not in stream.getvalue()


def test_other_libraries_only_warn(stream: io.StringIO) -> None:
    for name in ("llm.serve.models", "uvicorn.error", "httpx", "asyncio"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("loud")
    heard = [(line["logger"], line["event"]) for line in lines(stream)]
    assert heard.count(("httpx", "loud")) == heard.count(("asyncio", "loud")) == 1
    assert [name for name, event in heard if event == "quiet"] == ["llm.serve.models", "uvicorn.error"]
