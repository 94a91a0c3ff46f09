"""A file that is being read: its kind by its name, its bytes without compression, and what it may still cost."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO

from llm.data.sources.compression import COMPRESSED
from llm.data.sources.config import FilesSource
from llm.data.sources.limits import Budget, Metered, whole

BUFFER_BYTES = 262_144
MAX_LAYERS = 2
SHORT = {".tgz": ".gz", ".tbz": ".bz2", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}


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
