"""Decompression that stops before a small response has become a large one."""

from __future__ import annotations

import zlib

from llm.data.sources.limits import Refused

EXPANSION_BYTES = 2**20  # below this any ratio is harmless
GZIP_MAGIC = b"\x1f\x8b"


class Inflater:
    """The content of a response, chunk by chunk, as plain bytes or gzip, up to one byte more than `max_bytes`."""

    def __init__(self, encoding: str, max_bytes: int, max_ratio: float) -> None:
        """Raises: Refused if the encoding is none that was asked for."""
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise Refused("content_encoding")
        self._stream = _member() if encoding.endswith("gzip") else None
        self._max_bytes, self._max_ratio = max_bytes, max_ratio
        self._taken_bytes = self._given_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """What this chunk adds to the content.

        Raises: Refused if it is no gzip, or grows out of proportion.
        """
        self._taken_bytes += len(data)
        if self._stream is None:
            return data
        parts = []
        while data and self._given_bytes <= self._max_bytes:
            parts.append(self._inflated(self._stream, data))
            data = self._stream.unconsumed_tail
            if self._stream.eof and self._stream.unused_data.startswith(GZIP_MAGIC):  # another member; anything else is padding
                data, self._stream = self._stream.unused_data, _member()
        return b"".join(parts)

    def finish(self) -> None:
        """Raises: Refused if the end of the compressed stream is missing."""
        if self._stream is not None and self._taken_bytes and not self._stream.eof:
            raise Refused("truncated")

    def _inflated(self, stream: zlib._Decompress, data: bytes) -> bytes:
        try:
            content = stream.decompress(data, min(self._max_bytes + 1 - self._given_bytes, EXPANSION_BYTES))
        except zlib.error:
            raise Refused("content_encoding") from None
        self._given_bytes += len(content)
        if self._given_bytes > max(EXPANSION_BYTES, self._max_ratio * self._taken_bytes):
            raise Refused("compression_bomb")
        return content


def _member() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)
