"""Server-sent events that end well: with `[DONE]`, after an error too."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from llm.serve.endpoint.errors import ApiError, error_body
from llm.serve.endpoint.reply import DONE, event
from llm.serve.observe.log import failure
from llm.serve.observe.record import Record

log = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """The events of one answer, of which the record learns how it ended."""

    def __init__(self, events: AsyncIterator[str], record: Record) -> None:
        super().__init__(_ended(events, record), media_type="text/event-stream")


async def _ended(events: AsyncIterator[str], record: Record) -> AsyncIterator[str]:
    """The status has been sent by now, so that an error can only be an event."""
    try:
        async for part in events:
            yield part
    except ApiError as error:
        record.late_status = error.status_code
        yield event(error_body(error.status_code, error.detail, param=error.param, code=error.code))
    except Exception as error:
        record.late_status, record.error = 500, failure(error)
        log.exception("a stream broke off")
        yield event(error_body(500, "the server failed while it wrote the answer"))
    yield DONE
