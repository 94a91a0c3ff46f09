"""Decompression with bounds: so much output for so much input, so large a window, and an end that must be there.

pyarrow's streams lose memory with each damaged file, zstandard's don't notice a missing end, and the standard library's
of xz and zstd take any window.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

import zstandard

from llm.data.sources.limits import CHUNK_BYTES

WINDOW_BYTES = 128 * 2**20  # what `zstd --long` and twice what `xz -9` needs
ZSTD_INPUT_BYTES = 2_048  # of which a frame can make 64 MB


class Decoder(Protocol):
    """A decompressor of one member or frame, as the standard library has them."""

    @property
    def eof(self) -> bool:
        """Has the end been seen?"""

    @property
    def unused_data(self) -> bytes:
        """What came after it."""

    @property
    def needs_input(self) -> bool:
        """Is there nothing more to put out?"""

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        """Output, as far as it fits."""


class Decompressed(io.RawIOBase):
    """What a stream of compressed members unfolds to.

    Raises: EOFError if the last one has no end; what the decoder raises for damage.
    """

    def __init__(self, stream: BinaryIO, fresh: Callable[[], Decoder], input_bytes: int = CHUNK_BYTES) -> None:
        super().__init__()
        self._stream, self._fresh, self._input_bytes = stream, fresh, input_bytes
        self._decoder = fresh()

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if self._decoder.eof:
                data = self._decoder.unused_data.lstrip(b"\0")  # padding
                while not data and (padded := self._stream.read(self._input_bytes)):
                    data = padded.lstrip(b"\0")
                if not data:
                    return b""
                self._decoder = self._fresh()
            elif self._decoder.needs_input:
                data = self._stream.read(self._input_bytes)
            else:
                data = b""
            ended = self._decoder.needs_input and not data
            if output := self._decoder.decompress(data, size):
                return output
            if ended and not self._decoder.eof:
                raise EOFError("the end is missing")


class _Gzip:
    """A member of a .gz. Source: RFC 1952."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max(0, max_length))


class _Zstd:
    """A frame of a .zst. Source: RFC 8878."""

    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj()
        self._output = memoryview(b"")

    @property
    def eof(self) -> bool:
        return self._decoder.eof and not self._output

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._output and not self._decoder.eof

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        if data:
            self._output = memoryview(self._decoder.decompress(data))
        size = max_length if max_length >= 0 else len(self._output)
        output, self._output = bytes(self._output[:size]), self._output[size:]
        return output


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_BYTES)


COMPRESSED: dict[str, Callable[[BinaryIO], Decompressed]] = {
    ".gz": lambda stream: Decompressed(stream, _Gzip),
    ".bz2": lambda stream: Decompressed(stream, bz2.BZ2Decompressor),
    ".xz": lambda stream: Decompressed(stream, _xz),
    ".zst": lambda stream: Decompressed(stream, _Zstd, ZSTD_INPUT_BYTES),
}
