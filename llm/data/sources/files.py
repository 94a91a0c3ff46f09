"""Text files, plain, compressed or in archives, on disk or wherever fsspec reaches."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from llm.data.document import Document, Quarantined
from llm.data.hashing import share
from llm.data.parts import Piece
from llm.data.sources.config import FilesSource
from llm.data.sources.formats import ISOLATED, READERS, read_file, readable
from llm.data.sources.isolation import ReaderProcess
from llm.data.sources.limits import Budget
from llm.data.sources.opened import BUFFER_BYTES, Opened, kind
from llm.data.sources.storage import Stored, identified, identity, once, opened, refuse_changed, stored
from llm.errors import RecipeError

PIECE_BYTES, PIECE_FILES = 32_000_000, 10_000
ANY = ("*",)

Found = Iterator[Document | Quarantined]


def snapshot(source: FilesSource) -> dict[str, Any]:
    """Name, size and sha256 of every file: a touched file changes nothing, a changed byte does."""
    return {"kind": source.kind, "files": identity(identified(_files(source)))}


def pieces(source: FilesSource, home: Path) -> list[Piece]:
    """The files in groups of about `PIECE_BYTES`, in the order of their names."""
    return [Piece(group, identity(group)) for group in grouped(identified(_files(source)))]


def grouped(files: list[Stored]) -> Iterator[list[Stored]]:
    """Neighbours by name. Whether a group ends with a file is drawn by the hash of its name, so a new file changes one group.

    Source: content-defined chunking, Muthitacharoen et al. 2001, A low-bandwidth network file system.
    """
    group: list[Stored] = []
    for file in files:
        group.append(file)
        if share(file.name, "piece") < file.size_bytes / PIECE_BYTES or len(group) >= PIECE_FILES:
            yield group
            group = []
    if group:
        yield group


def read(source: FilesSource, piece: list[Stored]) -> Found:
    """The documents in the order of the file names; a file, a member or a line that can't be read is quarantined.

    Ids are `files:<path from the source's folder on>`, then `!<member>` and `#<number>` where there are several, so the
    folder may move. Tables and archives are parsed by a process of their own.

    Raises: SourceError if a file can't be reached, or isn't the one that was listed any more.
    """
    with ReaderProcess(source.limits) as process:
        for file in piece:
            with opened(file) as stream:
                if kind(file.name)[0] in ISOLATED:
                    yield from process.read(parse, source, file.name, stream, file.size_bytes)
                else:
                    yield from parse(source, file.name, _buffered(stream), file.size_bytes)
            refuse_changed(file)


def parse(source: FilesSource, name: str, stream: BinaryIO, size_bytes: int) -> Found:
    """The documents in the bytes of a file."""
    return read_file(Opened(source, name, stream, Budget(source.limits, size_bytes)))


def _buffered(stream: Any) -> BinaryIO:
    """With a look ahead, whatever storage the stream comes from."""
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, BUFFER_BYTES)


def _files(source: FilesSource) -> list[Stored]:
    """Every file that the source covers, by name, and each once.

    Raises: SourceError if the path is missing; RecipeError if it is one file of an unknown kind, or its patterns choose only such files.
    """
    files = _chosen(source)
    single = len(files) == 1 and "/" not in files[0].name
    if single and not readable(files[0].name):
        raise RecipeError("unknown kind of file", value=files[0].name, remedy=f"set collect.sources.path to one of {' '.join(READERS)}")
    found = [file for file in files if readable(file.name)]
    if files and not found and source.patterns != ANY:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(_suffixes(files).items()))
        remedy = f"set collect.sources.patterns to files of {' '.join(READERS)}, or rename these"
        raise RecipeError("no file that the patterns choose can be read", value=f"{' '.join(source.patterns)}, {kinds}", remedy=remedy)
    return once(found)


def skipped(source: FilesSource) -> Counter[str]:
    """How many files are left out since their kind can't be read, by suffix; hidden ones, and what the patterns leave out, aside."""
    return _suffixes(file for file in _chosen(source) if not readable(file.name))


def _chosen(source: FilesSource) -> list[Stored]:
    """The files that the patterns choose, readable or not; the one file whatever its name.

    Raises: SourceError if the path is missing.
    """
    files = stored(source.path)
    if len(files) == 1 and "/" not in files[0].name:
        return files
    return [file for file in files if any(fnmatch(PurePosixPath(file.name).name, pattern) for pattern in source.patterns)]


def _suffixes(files: Iterable[Stored]) -> Counter[str]:
    return Counter(kind(file.name)[0] or "no suffix" for file in files)
