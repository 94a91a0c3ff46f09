"""Server-sent events that end well: with `[DONE]`, after an error too."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from llm.serve.endpoint.errors import ApiError, error_body
from llm.serve.endpoint.reply import DONE, event
from llm.serve.endpoint.visit import Visit
from llm.serve.observe.log import failure

log = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """The events of one answer, of which the visit's record learns how it ended."""

    def __init__(self, events: AsyncIterator[str], visit: Visit) -> None:
        super().__init__(_ended(events, visit), media_type="text/event-stream")


async def _ended(events: AsyncIterator[str], visit: Visit) -> AsyncIterator[str]:
    """The status has been sent by now, so that an error can only be an event; many clients read no further than `[DONE]`."""
    record = visit.record
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
    visit.cleanup.close()
    yield DONE
