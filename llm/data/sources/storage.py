"""Where files lie: a local folder, or anything that fsspec reaches, such as s3:// or https://."""

from __future__ import annotations

import contextlib
import os
from collections import deque
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
CHECKSUMS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "sha256", "Last-Modified")  # the last for want of one


@dataclass(frozen=True)
class Stored:
    """A file of a source: its name from the source's folder on, where it lies, its size, and what identifies its content."""

    name: str
    place: str
    size_bytes: int
    mark: str = ""  # of a remote file
    sha256: str = ""  # of a local one, once it is known
    touched: tuple[int, ...] = ()  # size, time and inode of a local one: while they are the same, so is the content


def is_remote(path: str) -> bool:
    """Is this a URL rather than a local path?"""
    return "://" in path and not path.startswith("file://")


def stored(path: str) -> list[Stored]:
    """The files below a folder, or the one file, by name. What is hidden below the folder (.git, .venv, the store) isn't text.

    Links to folders are followed, and no folder is met twice.

    Raises: SourceError if nothing is there, or some of it can't be reached; DependencyError if the storage's driver isn't installed.
    """
    return sorted(_remote(path) if is_remote(path) else _local(path), key=lambda each: each.name)


def once(files: list[Stored]) -> list[Stored]:
    """The same without links to a file that is listed under its own name, or by an earlier link."""
    links = {file.name for file in files if not file.mark and os.path.islink(file.place)}
    if not links:
        return files
    targets: dict[str, str] = {}
    for file in sorted(files, key=lambda each: each.name in links):
        targets.setdefault(file.place if file.mark else os.path.realpath(file.place), file.name)
    chosen = set(targets.values())
    return [file for file in files if file.name in chosen]


def each_stored(named: list[tuple[str, str]]) -> list[Stored]:
    """Single files of these names and places, in this order.

    Raises: SourceError if one of them isn't there.
    """
    with ThreadPoolExecutor(max_workers=REQUESTS) as pool:
        return list(pool.map(_single, *zip(*named, strict=True)))


def _single(name: str, place: str) -> Stored:
    (file,) = stored(place)
    return replace(file, name=name)


def identified(files: list[Stored]) -> list[Stored]:
    """The same with the hashes of the local ones.

    Raises: SourceError if one of them can't be read.
    """
    return [file if file.mark else replace(file, sha256=_sha256(file)) for file in files]


def identity(files: list[Stored]) -> list[dict[str, Any]]:
    """What identifies the content of files: size and sha256, or of remote ones size and what their storage has for a checksum."""
    local = sorted((each for each in files if not each.mark), key=lambda each: each.name)
    return [{"path": each.name, "bytes": each.size_bytes, "sha256": each.sha256} for each in local] + [
        {"path": each.name, "bytes": each.size_bytes, "etag": each.mark} for each in files if each.mark
    ]


def refuse_changed(file: Stored) -> None:
    """Raises: SourceError if a file that has been read isn't what was listed any more: its bytes would go under a wrong hash."""
    with named_errors(file.name):
        if is_remote(file.place):
            system, path = file_system(file.place)
            system.invalidate_cache(path)
            info = system.info(path)
            same = file.mark in (system.ukey(path), *(str(info.get(name)) for name in CHECKSUMS))
            same = same and (info["size"] or 0) == (file.size_bytes or info["size"] or 0)
        else:
            same = not file.sha256 or _touched(Path(file.place)) == file.touched or _sha256(file) == file.sha256
    if not same:
        raise SourceError("a file changed while it was read", value=file.name, remedy="retry, or read a copy that nobody writes to")


def _sha256(file: Stored) -> str:
    with named_errors(file.name):
        (known,) = fingerprints([(file.name, Path(file.place))])
    return str(known["sha256"])


def _touched(path: Path) -> tuple[int, ...]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


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
    with named_errors(path):
        paths = [root] if root.is_file() else [each for each in _below(root) if each.is_file()]
        return [Stored(_name(each, root), str(each), (touched := _touched(each))[0], touched=touched) for each in paths]


def _below(root: Path) -> Iterator[Path]:
    """What lies below a folder itself, then what links to folders lead to; in each folder once, so in no circle."""
    waiting, seen = deque([root]), set[str]()
    while waiting:
        for folder, subfolders, names in os.walk(waiting.popleft(), onerror=_unreadable):
            if (real := os.path.realpath(folder)) in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(each for each in subfolders if not each.startswith("."))
            waiting.extend(path for each in subfolders if (path := Path(folder, each)).is_symlink())  # which os.walk leaves out
            yield from (Path(folder, name) for name in names if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    """A folder that is left out in silence would look like one without text."""
    with named_errors(str(error.filename)):
        raise error


def _remote(url: str) -> list[Stored]:
    system, root = file_system(url)
    with named_errors(url):
        info = system.info(root)
        found = {root: info} if info["type"] == "file" else system.find(root, detail=True)
        return [
            Stored(_name(path, root), system.unstrip_protocol(path), info["size"] or 0, _mark(system, path, info))
            for path, info in found.items()
            if not any(part.startswith(".") for part in PurePosixPath(path).relative_to(PurePosixPath(root)).parts)
        ]


def _name(path: str | Path, root: str | Path) -> str:
    """The path from the last part of the root on, without what no text file can hold."""
    name = PurePosixPath(path).relative_to(PurePosixPath(root).parent).as_posix()
    return name.encode("utf-8", "backslashreplace").decode()


def _mark(system: Any, path: str, info: dict[str, Any]) -> str:
    """The storage's own checksum of a file; without one, what changes when the file is written again."""
    return next((str(info[name]) for name in CHECKSUMS if info.get(name)), "") or system.ukey(path)
