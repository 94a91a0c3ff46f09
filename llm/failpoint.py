"""Places where a test may end, fail or delay the process: how a crash in the middle of a commit is tried out.

TRAINYARD_FAILPOINT=rename:kill:2     SIGKILL at the second call of failpoint("rename") in this process
TRAINYARD_FAILPOINT=fsync:raise:1     the OSError of a full disk
TRAINYARD_FAILPOINT=fsync:sleep:1     five seconds, as on a disk that stalls
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

VARIABLE = "TRAINYARD_FAILPOINT"
STALL_SECONDS = 5.0

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Nothing, unless TRAINYARD_FAILPOINT names this place."""
    if not (wanted := os.environ.get(VARIABLE)):
        return
    chosen, action, nth = wanted.split(":")
    _passed[name] += 1
    if (chosen, int(nth)) != (name, _passed[name]):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "sleep":
        time.sleep(STALL_SECONDS)
    if action == "raise":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
