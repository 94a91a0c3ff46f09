"""Waiting for storage that is away for a while, as storage behind a network can be, instead of losing what has to be written."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
AWAY = frozenset(  # what passes by itself; a full disk or a missing permission doesn't
    {errno.EIO, errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)


def is_away(error: OSError) -> bool:
    """Whether it may pass by itself: that a file or a device isn't there, or doesn't answer."""
    return error.errno in AWAY


class Patience:
    """How long writes wait for storage that is away."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ended = seconds, threading.Event()

    def retry(self, write: Callable[[], T]) -> T:
        """What `write` gives, called again after a pause as often as storage is away; so `write` must bear being repeated.

        Workers that fail together try again together: the pauses depend on nothing else.

        Raises: OSError of the last call, if it isn't one that passes, or after all pauses.
        """
        pauses = self.pauses()
        while True:
            try:
                return write()
            except OSError as error:
                pause = next(pauses, None)
                if not is_away(error) or pause is None:
                    raise
                log.warning("storage is away (%s): trying again in %g s", error, pause)
                if self.ended.wait(pause):
                    raise

    def pauses(self) -> Iterator[float]:
        """Seconds between calls, each twice the one before up to a limit, until all have used the patience up.

        Example:
            >>> list(Patience(3).pauses())
            [0.5, 1.0, 2.0]
        """
        pause, waited = FIRST_PAUSE_SECONDS, 0.0
        while waited < self.seconds:
            yield pause
            waited += pause
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def end(self) -> None:
        """Wait no longer: what fails from now on, or is waiting, raises."""
        self.ended.set()
