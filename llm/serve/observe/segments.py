"""A folder of JSON lines that several servers may add to: each batch of lines is on disk before anyone is told so.

FOLDER/traffic-<time>-<id>.jsonl     one server's lines, up to a size; then another file
FOLDER/.lock                         held while lines are added or taken out
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm.artifact import fsync
from llm.data.document import json_line
from llm.data.labelled import records
from llm.failpoint import failpoint

PATTERN = "traffic-*.jsonl"


class Segments:
    """Where one server's lines go."""

    def __init__(self, folder: Path, *, segment_bytes: int, max_bytes: int) -> None:
        self.folder, self._segment_bytes, self._max_bytes = folder, segment_bytes, max_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = _unused(folder)

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Add lines as one write, then make room: beyond the limit the oldest files go.

        Raises: OSError if they aren't on disk; then none of them is there.
        """
        data = "".join(map(json_line, lines)).encode("utf-8", "backslashreplace")
        with locked(self.folder):
            if _size(self._path) + len(data) > self._segment_bytes:
                self._path = _unused(self.folder)
            _append(self._path, data)
            self._make_room()

    def _make_room(self) -> None:
        files = segments(self.folder)
        excess_bytes = sum(map(_size, files)) - self._max_bytes
        for path in files:
            if excess_bytes > 0 and path != self._path:
                excess_bytes -= _size(path)
                path.unlink()


def segments(folder: Path) -> list[Path]:
    """The files of a folder, the oldest first."""
    return sorted(folder.glob(PATTERN))


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """All lines in their order. One that a dying machine left torn is skipped."""
    for path in segments(folder):
        yield from (record for record in records(path) if record is not None)


def forget(folder: Path, id: str) -> int:
    """Take every line about an answer out; returns how many there were."""
    forgotten = 0
    with locked(folder):
        for path in segments(folder):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if not _is_about(line, id)]
            if len(kept) < len(lines):
                forgotten += len(lines) - len(kept)
                _replace(path, b"".join(kept))
    return forgotten


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it when its holder dies."""
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _append(path: Path, data: bytes) -> None:
    """Write and force to disk, or leave the file as it was."""
    before, existed = _size(path), path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        failpoint("append")
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    finally:
        os.close(descriptor)
    if not existed:
        fsync(path.parent)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.touch(mode=0o600)
    temporary.write_bytes(data)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def _is_about(line: bytes, id: str) -> bool:
    if id.encode() not in line:
        return False
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        return isinstance(record, dict) and record.get("id") == id
    return True  # torn, but it names the answer


def _unused(folder: Path) -> Path:
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    return folder / f"traffic-{moment}-{uuid.uuid4().hex[:8]}.jsonl"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
