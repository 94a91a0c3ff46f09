"""Where files lie: a local folder, or anything that fsspec reaches, such as s3:// or https://."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
from fsspec.registry import known_implementations

from llm.data.hashing import fingerprints
from llm.errors import DependencyError, RecipeError, SourceError, TrainyardError

REMEDY = "set collect.sources.path to one that exists"
REQUESTS = 16  # at a time
CHECKSUMS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "sha256")


@dataclass(frozen=True)
class Stored:
    """A file of a source: its name from the source's folder on, where it lies, its size, and for a remote one a mark of its content."""

    name: str
    place: str
    size_bytes: int
    mark: str = ""


def is_remote(path: str) -> bool:
    """Is this a URL rather than a local path?"""
    return "://" in path and not path.startswith("file://")


def stored(path: str) -> list[Stored]:
    """The files below a folder, or the one file, by name.

    Raises: SourceError if nothing is there or it can't be reached; DependencyError if the storage's driver isn't installed.
    """
    return sorted(_remote(path) if is_remote(path) else _local(path), key=lambda each: each.name)


def each_stored(named: list[tuple[str, str]]) -> list[Stored]:
    """Single files of these names and places, in this order.

    Raises: SourceError if one of them isn't there.
    """
    with ThreadPoolExecutor(max_workers=REQUESTS) as pool:
        return list(pool.map(_single, *zip(*named, strict=True)))


def _single(name: str, place: str) -> Stored:
    (file,) = stored(place)
    return replace(file, name=name)


def identity(files: list[Stored]) -> list[dict[str, Any]]:
    """What identifies the content of files: size and sha256, or of remote ones size and what their storage has for a checksum."""
    local = fingerprints((each.name, Path(each.place)) for each in files if not each.mark)
    return local + [{"path": each.name, "bytes": each.size_bytes, "etag": each.mark} for each in files if each.mark]


@contextlib.contextmanager
def opened(file: Stored) -> Iterator[BinaryIO]:
    """The bytes of a file.

    Raises: SourceError if they can't be reached, also while they are read.
    """
    with named_errors(file.name):
        if is_remote(file.place):
            system, path = file_system(file.place)
            with system.open(path, "rb") as stream:
                yield stream
        else:
            with Path(file.place).open("rb") as stream:
                yield stream


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn what the machine or the network raises instead of bytes into a SourceError."""
    try:
        yield
    except TrainyardError:
        raise
    except Exception as error:  # the drivers of storages have errors of their own
        if isinstance(error, FileNotFoundError) and _is_gone(error):
            raise SourceError("no such file or folder", transient=False, value=name, remedy=REMEDY) from error
        reason = error.__cause__ or getattr(error, "strerror", None) or error
        raise SourceError("a file can't be read", value=f"{name}, {reason}", remedy="make it readable") from error


def _is_gone(error: FileNotFoundError) -> bool:
    """Does the storage say so? fsspec takes a web server's every failure for a missing file."""
    return error.__cause__ is None or getattr(error.__cause__, "status", None) in (404, 410)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Raises: DependencyError if its driver isn't installed; RecipeError if there is none.
    """
    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        driver = known_implementations.get(protocol, {}).get("err", str(error))
        raise DependencyError("the driver of a storage is missing", value=f"{protocol}://", remedy=driver) from error
    except ValueError as error:
        raise RecipeError("unknown storage", value=f"{protocol}://", remedy="set collect.sources.path to a path or a URL") from error
    return system, path


def _local(path: str) -> list[Stored]:
    root = Path(os.path.abspath(Path(path.removeprefix("file://")).expanduser()))
    if not root.exists():
        raise SourceError("no such file or folder", transient=False, value=path, remedy=REMEDY)
    paths = [root] if root.is_file() else [each for each in root.rglob("*") if each.is_file()]
    return [Stored(_name(each, root), str(each), each.stat().st_size) for each in paths]


def _remote(url: str) -> list[Stored]:
    system, root = file_system(url)
    with named_errors(url):
        info = system.info(root)
        found = {root: info} if info["type"] == "file" else system.find(root, detail=True)
        return [
            Stored(_name(path, root), system.unstrip_protocol(path), info["size"] or 0, _mark(system, path, info))
            for path, info in found.items()
        ]


def _name(path: str | Path, root: str | Path) -> str:
    """The path from the last part of the root on, without what no text file can hold."""
    name = PurePosixPath(path).relative_to(PurePosixPath(root).parent).as_posix()
    return name.encode("utf-8", "backslashreplace").decode()


def _mark(system: Any, path: str, info: dict[str, Any]) -> str:
    """The storage's own checksum of a file; without one, what changes when the file is written again."""
    return next((str(info[name]) for name in CHECKSUMS if info.get(name)), "") or system.ukey(path)
