"""What hostile bytes may cost: how far a file may unfold, how long a line may be, how much of it may be bad."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from llm.data.document import Document, Quarantined
from llm.data.sources.config import Limits

FREE_BYTES = 64_000_000  # what a small file may unfold to, however well it is compressed
CHUNK_BYTES = 262_144

Found = Iterator[Document | Quarantined]


class Refused(Exception):
    """What is being read can't be a document, for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Budget:
    """What is left of a file's limits while it is read.

    Source: decompression bombs, David Fifield, A better zip bomb, https://www.usenix.org/conference/woot19/presentation/fifield.
    """

    limits: Limits
    size_bytes: int
    decoded_bytes: int = 0
    bad_records: int = 0

    def spend(self, decoded_bytes: int) -> None:
        """Count what a decoder put out.

        Raises: Refused if that is more than the file's size justifies.
        """
        self.decoded_bytes += decoded_bytes
        most = max(FREE_BYTES, self.limits.max_ratio * (self.size_bytes or FREE_BYTES))  # some servers don't tell the size
        if self.decoded_bytes > min(most, self.limits.max_decoded_bytes):
            raise Refused("too_large")

    def watched(self, found: Found) -> Found:
        """The same, until too much of it is bad.

        Raises: Refused then.
        """
        for each in found:
            self.bad_records += isinstance(each, Quarantined)
            if self.bad_records > self.limits.max_bad_records:
                raise Refused("too_many_bad_records")
            yield each


class Metered(io.RawIOBase):
    """The bytes of a decoder, paid for from the budget."""

    def __init__(self, decoder: io.RawIOBase | BinaryIO, budget: Budget) -> None:
        super().__init__()
        self._decoder, self._budget = decoder, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._decoder.read(min(len(buffer), CHUNK_BYTES)) or b""
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)


def whole(stream: BinaryIO, max_bytes: int) -> bytes:
    """All that is left of a stream.

    Raises: Refused if that is too much to be held.
    """
    data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Refused("too_large")
    return data


def lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """The lines of a stream with their ends; None for one that is too long to be held."""
    while line := stream.readline(max_bytes + 1):
        if len(line) <= max_bytes:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(CHUNK_BYTES)
        yield None
