"""Files written around the page cache and hashed on the way: a checkpoint is read again only after a failure.

Through the cache, every byte costs a page that the kernel has to find and to clear while training waits for the same cores
and the same memory, and a hash of the finished file would read all of it once more.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import xxhash
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from llm.artifact import Hash

HASH = Hash("xxh3_128", xxhash.xxh3_128)  # a tenth of what sha256 takes from a core that trains
BLOCK_BYTES = 8 << 20  # of a buffer that memory and disk can exchange: aligned to a page, a multiple of any sector
DIRECT = getattr(os, "O_DIRECT", 0)  # Linux alone has it


class DirectFile(io.RawIOBase):
    """A new file that is written from its beginning to its end; `hash` is of all that was written, once it is closed."""

    def __init__(self, path: Path) -> None:
        self._descriptor = _created(path)
        self._block, self._filled, self._written = mmap.mmap(-1, BLOCK_BYTES), 0, 0
        self._hash = HASH.new()

    @property
    def hash(self) -> str:
        return cast(str, self._hash.hexdigest())

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def tell(self) -> int:
        return self._written + self._filled

    def write(self, data: Any, /) -> int:
        """Take all of `data`; whole blocks go to the disk."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), BLOCK_BYTES):
            self._take(view[start : start + BLOCK_BYTES])
        return len(view)

    def _take(self, view: memoryview) -> None:
        room = BLOCK_BYTES - self._filled
        for part in (view[:room], view[room:]):
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == BLOCK_BYTES:
                self._empty()

    def _empty(self) -> None:
        """Write what the block holds."""
        with memoryview(self._block) as block:
            self._hash.update(block[: self._filled])
            begun = 0
            while begun < self._filled:
                begun += os.write(self._descriptor, block[begun : self._filled])
        self._written += self._filled
        self._filled = 0

    def close(self) -> None:
        """Write the rest, which may be no multiple of a sector, through the cache."""
        if self.closed:
            return
        try:
            if DIRECT:
                flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~DIRECT)
            self._empty()
        finally:
            super().close()
            os.close(self._descriptor)
            self._block.close()


def _created(path: Path) -> int:
    """A descriptor of an empty file, around the cache where the file system can."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with contextlib.suppress(OSError):  # what is wrong otherwise is wrong without it too
        return os.open(path, flags | DIRECT, 0o666)
    return os.open(path, flags, 0o666)


class DirectFiles(FileSystem):
    """torch's way to the local disk, whose new files are `DirectFile`s; `hashes` are of each, by its path."""

    def __init__(self) -> None:
        self.hashes: dict[Path, str] = {}

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Make one folder and none above it, which would stand in the way of storage that is away."""
        Path(path).mkdir(exist_ok=True)

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """A file that is open for the length of a block."""
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        file = DirectFile(Path(path))
        try:
            yield cast(io.IOBase, file)
        finally:
            file.close()
        self.hashes[Path(path)] = file.hash


def writer(folder: Path) -> tuple[FileSystemWriter, DirectFiles]:
    """What torch saves a checkpoint through, and where the hashes of its files appear."""
    writing, files = FileSystemWriter(folder), DirectFiles()
    writing.fs = files
    return writing, files
