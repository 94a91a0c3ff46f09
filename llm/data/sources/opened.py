"""A file that is being read: its kind by its name, its bytes without compression, and what it may still cost."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from llm.data.sources.config import FilesSource
from llm.data.sources.limits import Budget, Metered, whole

BUFFER_BYTES = 262_144
XZ_WINDOW_BYTES = 128 * 2**20  # as in zstandard; `xz -9` needs half of it
MAX_LAYERS = 2


@dataclass(frozen=True)
class Opened:
    """A file, or a member of an archive, that is being read."""

    source: FilesSource
    name: str
    stream: BinaryIO
    budget: Budget
    created: str = ""  # the date that an archive gives

    @property
    def id(self) -> str:
        return f"files:{self.name}"


def kind(name: str) -> tuple[str, tuple[str, ...]]:
    """The suffix that says how to read a file, and the compressions around it, the outermost first.

    Example:
        >>> kind("a.TXT"), kind("logs.jsonl.zst"), kind("code.tgz")
        (('.txt', ()), ('.jsonl', ('.zst',)), ('.tar', ('.gz',)))
    """
    path = PurePosixPath(name.lower())
    if path.suffix in SHORT:
        return ".tar", (SHORT[path.suffix],)
    layers: list[str] = []
    while path.suffix in COMPRESSED and len(layers) < MAX_LAYERS:
        layers.append(path.suffix)
        path = path.with_suffix("")
    return path.suffix, tuple(layers)


def decompressed(file: Opened) -> Opened:
    """The same file without the compressions that its name tells of."""
    stream = file.stream
    for layer in kind(file.name)[1]:
        stream = io.BufferedReader(Metered(COMPRESSED[layer](stream), file.budget), BUFFER_BYTES)
    return replace(file, stream=stream)


def seekable(file: Opened) -> BinaryIO:
    """The stream itself, or if it can only go forward, its content.

    Raises: Refused if that is too much to be held.
    """
    return file.stream if file.stream.seekable() else io.BytesIO(whole(file.stream, file.source.limits.max_memory_bytes // 8))


class _Unxz(io.RawIOBase):
    """.xz with a bound on the window, which the standard library's file object doesn't have."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream, self._decoder = stream, self._fresh()

    @staticmethod
    def _fresh() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_WINDOW_BYTES)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._stream.read(BUFFER_BYTES)
                if not rest.strip(b"\0"):  # padding, or the end
                    return b""
                self._decoder = self._fresh()
            elif self._decoder.needs_input:
                rest = self._stream.read(BUFFER_BYTES)
                if not rest:
                    raise EOFError("the end is missing")
            else:
                rest = b""
            if data := self._decoder.decompress(rest, size):
                return data


def _arrow(codec: str) -> Callable[[BinaryIO], BinaryIO]:
    """A decompressor of Arrow, which notices a missing end (zstandard's own reader does not)."""
    return lambda stream: pa.CompressedInputStream(stream, codec)


COMPRESSED: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": _arrow("gzip"),
    ".bz2": _arrow("bz2"),
    ".zst": _arrow("zstd"),
    ".xz": _Unxz,  # type: ignore[dict-item]
}
SHORT = {".tgz": ".gz", ".tbz": ".bz2", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}
