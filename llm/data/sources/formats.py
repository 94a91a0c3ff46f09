"""Kinds of files, each read from a stream of bytes as documents. Nothing here opens a file or writes one."""

from __future__ import annotations

import csv
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import zstandard

from llm.data.document import Document, Quarantined
from llm.data.sources.archives import ARCHIVES, Members, Wanted, tar_members, zip_members
from llm.data.sources.decoding import decoded, decoded_page
from llm.data.sources.limits import Found, Refused, whole
from llm.data.sources.opened import Opened, decompressed, kind
from llm.data.sources.tables import arrow, comma_separated, json_lines, parquet, tab_separated

# What the parsers of damaged bytes raise.
DAMAGE: tuple[type[Exception], ...] = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
DAMAGE += (csv.Error, lzma.LZMAError, pa.ArrowException, struct.error, tarfile.TarError)
DAMAGE += (zipfile.BadZipFile, zlib.error, zstandard.ZstdError)


def read_file(file: Opened) -> Found:
    """The documents of a file, whatever its kind; what its bytes don't let through is quarantined.

    Raises: OSError with a number if the machine is at fault and not the file.
    """
    try:
        yield from file.budget.watched(_read(file))
    except Refused as refused:
        yield Quarantined(file.id, refused.reason)


def readable(name: str) -> bool:
    """Is this the name of a kind of file that holds text?"""
    return kind(name)[0] in READERS


def _read(file: Opened) -> Found:
    try:
        yield from READERS[kind(file.name)[0]](decompressed(file))
    except Refused as refused:
        yield Quarantined(file.id, refused.reason)
    except (MemoryError, RecursionError):
        yield Quarantined(file.id, "too_large")
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:
            raise
        yield Quarantined(file.id, "corrupt")


def _text(file: Opened) -> Found:
    yield _document(file, decoded(_bytes(file), file.source.min_encoding_confidence))


def _html(file: Opened) -> Found:
    """Kept as it is; clean looks for the main text."""
    yield _document(file, decoded_page(_bytes(file), "", file.source.min_encoding_confidence), format="html")


def _program(file: Opened) -> Found:
    language = LANGUAGES[kind(file.name)[0]]
    yield _document(file, decoded(_bytes(file), file.source.min_encoding_confidence), language, format="code")


def _archive(members: Callable[[Opened, Wanted], Members]) -> Reader:
    """A reader of whatever in an archive holds text."""

    def read(file: Opened) -> Found:
        for member in members(file, readable):
            if isinstance(member, Quarantined):
                yield member
            else:
                yield from _read(member)

    return read


def _bytes(file: Opened) -> bytes:
    return whole(file.stream, file.source.limits.max_document_bytes)


def _document(file: Opened, text: str, language: str = "", **meta: Any) -> Document:
    meta["path"], source = file.name, file.source
    told = {"domain": source.domain, "language": language or source.language, "license": source.license}
    return Document(file.id, text, "files", created=file.created, meta=meta, **told)


Reader = Callable[[Opened], Found]

LANGUAGES = {
    ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp", ".cs": "csharp", ".css": "css", ".cu": "cuda", ".go": "go",
    ".hs": "haskell", ".java": "java", ".jl": "julia", ".js": "javascript", ".kt": "kotlin", ".lua": "lua", ".ml": "ocaml",
    ".php": "php", ".pl": "perl", ".py": "python", ".pyi": "python", ".r": "r", ".rb": "ruby", ".rs": "rust", ".scala": "scala",
    ".sh": "shell", ".sql": "sql", ".swift": "swift", ".ts": "typescript", ".tsx": "typescript",
}  # fmt: skip

READERS: dict[str, Reader] = {
    ".txt": _text,
    ".md": _text,
    ".rst": _text,
    ".html": _html,
    ".htm": _html,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".csv": comma_separated,
    ".tsv": tab_separated,
    ".parquet": parquet,
    ".arrow": arrow,
    ".feather": arrow,
    ".zip": _archive(zip_members),
    ".tar": _archive(tar_members),
    **dict.fromkeys(LANGUAGES, _program),
}
ISOLATED = (".parquet", ".arrow", ".feather", *ARCHIVES)  # what a process of its own reads: parsers in C that damage could break
