"""Parts: what a stage makes of its input piece by piece, each committed for itself.

    STORE/<stage>/.parts/<key>/     the files of one part, and their manifest

The key is the sha256 of all that shapes a part: the stage's code, the settings, and the content of its piece. A part
that a killed attempt finished, and one that last night's run made of a piece which is still the same, is found
instead of made; so a nightly run works on what is new, and yields what a run from nothing would.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from llm.artifact import commit, sha256_file, sha256_of, verified_manifest
from llm.errors import ArtifactError

Make = Callable[[Any, Path], dict[str, Any]]  # fills a folder from a piece's value; answers with counts


class Spread(Protocol):
    """A map over pieces, whoever computes them; results come in any order."""

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterator[Any]: ...


def one_by_one(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """The map of this process alone."""
    return map(function, items)


@dataclass(frozen=True)
class Piece:
    """One unit of a stage's input: what a worker is told, and what identifies its content (JSON-able, no path of a machine)."""

    value: Any
    identity: Any


@dataclass(frozen=True)
class Part:
    """What became of a piece: a committed folder."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def counts(self) -> dict[str, Any]:
        """What its maker answered."""
        counts: dict[str, Any] = self.manifest["counts"]
        return counts

    def sha256(self, name: str) -> str:
        """Hash of one of its files."""
        digest: str = self.manifest["files"][name]["sha256"]
        return digest

    def files(self, pattern: str) -> list[Path]:
        """Its files of this pattern, by name."""
        return sorted(self.path.glob(pattern))


@dataclass(frozen=True)
class Workshop:
    """Where a stage makes its parts, the code that makes them, and on which machines that runs."""

    folder: Path
    code: Mapping[str, Any] = field(default_factory=dict)  # digests of modules, versions of packages: what every part depends on
    spread: Spread = one_by_one

    def made(self, name: str, make: Make, pieces: Sequence[Piece], *, settings: Any = None) -> list[Part]:
        """The part of every piece, in the order of the pieces; those that are missing are made first.

        `make` must be picklable (a function of a module, or a partial of one) and write nothing but files that follow
        from the piece, the settings and the code.

        Raises: what `make` raises.
        """
        _sweep(self.folder)
        keys = [sha256_of({"code": self.code, "part": name, "settings": settings, "piece": piece.identity})[:32] for piece in pieces]
        parts = {key: self._found(key) for key in dict.fromkeys(keys)}
        missing = {key: piece.value for key, piece in zip(keys, pieces, strict=True) if parts[key] is None}
        for key in self.spread(partial(_make, self.folder, make), list(missing.items())):
            parts[key] = self._found(key)
        return [_present(parts[key], self.folder / key) for key in keys]

    def _found(self, key: str) -> Part | None:
        """The part under this key, marked as used; a damaged one is set aside."""
        path = self.folder / key
        if not path.is_dir():
            return None
        try:
            part = Part(path, verified_manifest(path))
            os.utime(path)  # for `gc`: it is in use
            return part
        except ArtifactError:
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f".corrupt-{key}-{uuid.uuid4().hex[:8]}"))
            return None


def _present(part: Part | None, place: Path) -> Part:
    if part is None:
        remedy = "set TRAINYARD_HOME to a folder that all machines share"
        raise ArtifactError("a part is not where a worker made it", value=place, remedy=remedy)
    return part


def _make(folder: Path, make: Make, item: tuple[str, Any]) -> str:
    """Make one part beside its place and commit it; of several that make the same one, the first wins. Answers with its key."""
    key, value = item
    with _claimed(folder / f".tmp-{key}-{uuid.uuid4().hex[:8]}") as temporary:
        counts = make(value, temporary)
        try:
            commit(temporary, folder / key, {"stage": folder.parent.name, "key": key, "counts": counts})
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    return key


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[Path]:
    """A new folder that is this process's until the block ends, or the process does; what is left of it then goes."""
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what killed processes were making: the kernel has freed their locks."""
    for left in folder.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def shards(folder: Path, pattern: str) -> list[Piece]:
    """The files of a stage's folder as pieces, by name: their path, identified by their content."""
    manifest = folder / "manifest.json"
    known = json.loads(manifest.read_text())["files"] if manifest.exists() else {}
    return [
        Piece(str(path), known[path.name]["sha256"] if path.name in known else sha256_file(path)) for path in sorted(folder.glob(pattern))
    ]


def link(source: Path, target: Path) -> None:
    """The same file under a second name, without a copy where the file system can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
