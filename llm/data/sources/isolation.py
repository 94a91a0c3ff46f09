"""A reader process: bytes that may break a parser written in C are parsed by a child that may die.

The child has no files: it asks its parent for bytes by their place, and answers with documents. Its address space is
limited, and so is the time that it may compute without getting on; computing time, since a busy or sleeping machine
must not change what is read. When it dies, whatever it was reading is quarantined, and the next child reads on.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from llm.data.document import Document, Quarantined
from llm.data.sources.config import Limits

Parse = Callable[[Any, str, BinaryIO, int], Iterator[Document | Quarantined]]  # (source, name, stream, its size)

READ, FOUND, DONE = b"r", b"f", b"d"
CHUNK_BYTES, MOST_BYTES = 1 << 18, 1 << 20  # of the file, asked for at once
MESSAGE_BYTES = 1 << 28
PATIENCE = 20  # how much longer than computing may the child take by the clock
ROOT = Path(__file__).parents[3]
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}


class ReaderProcess:
    """A child that parses one file after the other; it starts with the first and starts again after a death."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._child is not None:
            self._child[0].kill()
            self._buried()

    def read(self, parse: Parse, source: Any, name: str, stream: BinaryIO, size_bytes: int) -> Iterator[Document | Quarantined]:
        """What `parse`, a function of a module, finds in a stream; if that kills the child, the file is quarantined after it.

        Raises: OSError of the stream itself.
        """
        job = (parse, source, name, size_bytes)
        connection = self._told(job) or self._told(job)  # the first child may have died before this file
        while connection and (message := self._message()) is not None:
            if message[:1] == READ:
                data = _bytes_at(stream, *json.loads(message[1:]))
                with suppress(ConnectionError):  # it died while it waited; then there is no next message
                    connection.send_bytes(data)
            elif message[:1] == FOUND:
                yield from map(_unpacked, json.loads(message[1:].decode("utf-8", "surrogatepass")))
            else:
                return
        stuck = self._buried() in (-signal.SIGPROF, -signal.SIGKILL)
        yield Quarantined(f"{source.kind}:{name}", "stuck" if stuck else "crashed")

    def _told(self, job: tuple[Any, ...]) -> Connection | None:
        """The connection to a child that has the job; None if it is dead."""
        self._child = self._child or _start(self._limits)
        with suppress(ConnectionError):
            self._child[1].send(job)
            return self._child[1]
        self._buried()
        return None

    def _message(self) -> bytes | None:
        """The child's next words; None if it died, or was ended since it fell silent or would not stop talking."""
        assert self._child is not None
        child, connection = self._child
        try:
            if connection.poll(self._limits.max_stuck_seconds * PATIENCE):
                return connection.recv_bytes(MESSAGE_BYTES)
            child.kill()
        except (EOFError, OSError):  # it is dead, or the message is longer than may be
            child.terminate()
        return None

    def _buried(self) -> int | None:
        """What a dying child ended with; None if there is none."""
        if self._child is None:
            return None
        (child, connection), self._child = self._child, None
        connection.close()
        return child.wait()


def _bytes_at(stream: BinaryIO, place: int, size: int) -> bytes:
    if stream.tell() != place:
        stream.seek(place)
    return stream.read(size)


def _start(limits: Limits) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(limits.max_memory_bytes), str(limits.max_stuck_seconds)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with theirs:
        return subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ | QUIET | {"PYTHONPATH": paths}), ours


class _Remote(io.RawIOBase):
    """The parent's stream, seen from the child."""

    def __init__(self, connection: Connection, size_bytes: int, progress: Callable[[], object]) -> None:
        super().__init__()
        self._connection, self._size_bytes, self._progress = connection, size_bytes, progress
        self._place = self._furthest = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size_bytes}[whence]
        if place < 0:
            raise ValueError("before the beginning")
        self._place = place
        return place

    def readinto(self, buffer: Any, /) -> int:
        self._connection.send_bytes(READ + json.dumps([self._place, min(len(buffer), MOST_BYTES)]).encode())
        count = self._connection.recv_bytes_into(buffer)
        self._place += count
        if self._place > self._furthest:  # going in circles is no progress
            self._furthest = self._place
            self._progress()
        return count


def _serve(connection: Connection, stuck_seconds: float) -> None:
    """Parse what the parent sends until it goes away."""

    def progress() -> None:
        signal.setitimer(signal.ITIMER_PROF, stuck_seconds)  # which then ends the process

    while True:
        signal.setitimer(signal.ITIMER_PROF, 0)
        parse, source, name, size_bytes = connection.recv()
        progress()
        batch, batch_bytes = list[Any](), 0
        stream = io.BufferedReader(_Remote(connection, size_bytes, progress), CHUNK_BYTES)
        for found in parse(source, name, stream, size_bytes):
            progress()
            batch.append(_packed(found))
            batch_bytes += len(found.text) if isinstance(found, Document) else 0
            if batch_bytes > CHUNK_BYTES or len(batch) >= 1000:
                _send(connection, batch)
                batch, batch_bytes = [], 0
        _send(connection, batch)
        connection.send_bytes(DONE)


def _send(connection: Connection, batch: list[Any]) -> None:
    connection.send_bytes(FOUND + json.dumps(batch, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _packed(found: Document | Quarantined) -> list[Any]:
    return [getattr(found, name) for name in found.__slots__]


def _unpacked(values: list[Any]) -> Document | Quarantined:
    return Document(*values) if len(values) == len(Document.__slots__) else Quarantined(*values)


if __name__ == "__main__":
    import llm.data.sources.formats  # noqa: F401 - before the limit, whatever it takes

    pipe, memory_bytes, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        _serve(Connection(pipe), seconds)
