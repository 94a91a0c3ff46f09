"""The server's log: a line of JSON for each request and each event, without prompts, answers or keys."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from llm.data.filters.privacy import PLACEHOLDERS
from llm.data.filters.secrets import keys
from llm.errors import TrainyardError

requests = logging.getLogger("llm.serve.requests")
events = logging.getLogger("llm.serve.events")

FRAMES = 8  # of a traceback, the innermost
_credentials = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{4,}")


def configure(stream: TextIO | None = None, *, level: int = logging.INFO) -> logging.Handler:
    """Send all that this process logs to a stream, by default stderr; of other libraries than uvicorn, warnings.

    Run uvicorn with `log_config=None` and `access_log=False`: its line per request repeats paths with their queries.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("llm", "uvicorn", "uvicorn.error"):  # whoever ran uvicorn before may have set the last two apart
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)
    return handler


class JsonLines(logging.Formatter):
    """A record as one line of JSON; of an exception its kind and places, since its message may quote a prompt.

    Those who log to `events` see no prompt: an error of this project or of the operating system says there what it has to.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            known = record.name == events.name and isinstance(error, TrainyardError | OSError)
            line["error"] = f"{type(error).__name__}: {error}" if known else failure(error)
        return json.dumps({name: redacted(value) if isinstance(value, str) else value for name, value in line.items()})


def redacted(text: str) -> str:
    """The text with placeholders for tokens, keys and passwords.

    Example:
        >>> redacted("Authorization: Bearer abcd1234")
        'Authorization: Bearer <KEY>'
    """
    pieces, position = list[str](), 0
    for start, end in sorted(keys(text)):
        if start >= position:
            pieces += (text[position:start], PLACEHOLDERS["key"])
            position = end
    return _credentials.sub(rf"\1 {PLACEHOLDERS['key']}", "".join((*pieces, text[position:])))


def failure(error: BaseException) -> str:
    """Kind of an exception and the places that it came through, innermost last; never its message."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    places = " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__} at {places}" if places else type(error).__name__
