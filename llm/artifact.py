"""Artifacts: directories with a manifest, the only thing that travels between stages.

    STORE/<stage>/<key>/            the stage's files and manifest.json
    STORE/<stage>/.work-<key>/      what an unfinished attempt keeps (training checkpoints)
    STORE/<stage>/.tmp-<key>-<id>/  what an attempt is writing; nobody reads it

A directory becomes visible by one rename, after every file and the manifest are on disk. A reader accepts
only a directory whose manifest verifies; anything else is set aside as `.corrupt-…` and computed again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from llm.errors import ArtifactError
from llm.failpoint import failpoint
from llm.metrics import Stopwatch

SCHEMA = 1
LOG = "log/"  # files below it are hashed, but outside the content digest: timings, machine facts


class Hash(NamedTuple):
    """What a manifest states of each file."""

    name: str
    new: Callable[[], Any]  # an object with update and hexdigest, as of hashlib


SHA256 = Hash("sha256", hashlib.sha256)


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: object) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    return _file_hash(path, SHA256)


def _file_hash(path: Path, kind: Hash) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind.new).hexdigest()


@dataclass(frozen=True)
class Ref:
    """A small JSON-able reference to an artifact: what tasks return."""

    stage: str
    key: str
    digest: str
    path: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Artifact:
    """A committed directory and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def ref(self) -> Ref:
        return Ref(self.manifest["stage"], self.manifest["key"], self.manifest["digest"], str(self.path))


class Store:
    """A directory of artifacts on a local or shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, stage: str, key: str) -> Path:
        return self.root / stage / key

    def work(self, stage: str, key: str) -> Path:
        """The folder that survives between the attempts at one artifact, made on first use."""
        folder = self.root / stage / f".work-{key}"
        with named_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact if it is there and verifies; a damaged one is renamed `.corrupt-…` first."""
        path = self.path(stage, key)
        if not path.is_dir():
            return None
        try:
            return Artifact(path, verified_manifest(path))
        except ArtifactError:
            with named_errors(path), contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f".corrupt-{key}-{uuid.uuid4().hex[:8]}"))
            return None

    def all(self) -> Iterator[Artifact]:
        """Every committed artifact with a readable manifest, its files unverified."""
        manifests = [path for path in self.root.glob("*/*/manifest.json") if not path.parent.name.startswith(".")]
        for path in sorted(manifests):
            with contextlib.suppress(FileNotFoundError, ValueError):  # deleted or damaged meanwhile: `find` sets it aside
                yield Artifact(path.parent, json.loads(path.read_text()))

    def produce(self, stage: str, key: str, facts: Mapping[str, Any], build: Callable[[Path], dict[str, Any]]) -> Artifact:
        """The artifact under this key: found, or built in a hidden sibling and committed.

        Processes that want the same key wait for each other, and the later ones adopt what the first one made.

        Raises: ArtifactError if the store is full, read-only or out of reach; nothing half-written stays visible.
        """
        with self.lock(stage, key):
            if found := self.find(stage, key):
                return found
            for left in (self.root / stage).glob(f".tmp-{key}-*"):  # of a killed attempt: its lock is ours now
                shutil.rmtree(left, ignore_errors=True)
            temporary = self.root / stage / f".tmp-{key}-{uuid.uuid4().hex[:8]}"
            try:
                with named_errors(self.root):
                    temporary.mkdir(parents=True)
                    stopwatch = Stopwatch()
                    counts = build(temporary)
                    manifest = {
                        "schema": SCHEMA,
                        "stage": stage,
                        "key": key,
                        **facts,
                        "created": now(),
                        "counts": counts,
                        **stopwatch.read(counts),
                    }
                    commit(temporary, self.path(stage, key), manifest)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            shutil.rmtree(self.root / stage / f".work-{key}", ignore_errors=True)
            return Artifact(self.path(stage, key), verified_manifest(self.path(stage, key)))

    def sweep(self) -> None:
        """Remove what killed attempts were writing, and work folders whose artifact is committed.

        The lock of a key tells whether its writer lives: the kernel frees it when a process dies.
        """
        for left in [*self.root.glob("*/.tmp-*"), *self.root.glob("*/.work-*")]:
            kind, _, name = left.name.removeprefix(".").partition("-")
            key = name.rpartition("-")[0] if kind == "tmp" else name
            if kind == "work" and not self.path(left.parent.name, key).is_dir():
                continue
            with contextlib.suppress(BlockingIOError), self.lock(left.parent.name, key, wait=False):
                shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, *names: str, wait: bool = True) -> Iterator[None]:
        """Hold a named lock; the kernel frees it when its holder dies.

        Raises: BlockingIOError if somebody holds it and `wait` is false.
        """
        folder = self.root / ".locks"
        path = folder / "-".join(names)
        with named_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            handle = path.open("w")
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


def commit(
    temporary: Path,
    destination: Path,
    manifest: dict[str, Any],
    hashes: Mapping[str, str] = MappingProxyType({}),
    kind: Hash = SHA256,
) -> None:
    """Make a finished directory visible under a name beside it: fsync files, write the manifest, rename, fsync the parent.

    `hashes` are those of files that whoever wrote them has hashed already, by relative name.

    Raises: ArtifactError if the stage wrote no file. OSError if storage is away, in whose place nothing is made: it may come back.
    """
    files = describe(temporary, hashes, kind)
    if not files:
        temporary.stat()  # storage that is away shows no file either
        raise ArtifactError("stage wrote no file", value=manifest["stage"], remedy="report this as a defect")
    for name in files:
        fsync(temporary / name)
    write_json(temporary / "manifest.json", manifest | {"files": files, "digest": content_digest(files, kind)})
    for folder in {(temporary / name).parent for name in files} | {temporary}:
        fsync(folder)
    failpoint("commit")
    temporary.rename(destination)
    fsync(destination.parent)


def describe(folder: Path, hashes: Mapping[str, str] = MappingProxyType({}), kind: Hash = SHA256) -> dict[str, dict[str, Any]]:
    """Size and hash of every payload file below a folder, by relative name; those in `hashes` are not read."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / "manifest.json"]
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(lambda name: hashes.get(name) or _file_hash(folder / name, kind), names))
    return {name: {"bytes": path.stat().st_size, kind.name: each} for name, path, each in zip(names, paths, found, strict=True)}


def stated_hashes(folder: Path) -> dict[str, str]:
    """sha256 of an artifact's files by relative name, as its manifest states them; nothing of a folder that is no artifact."""
    path = folder / "manifest.json"
    files = json.loads(path.read_text())["files"] if path.is_file() else {}
    return {name: facts["sha256"] for name, facts in files.items()}


def content_digest(files: Mapping[str, Mapping[str, Any]], kind: Hash = SHA256) -> str:
    """sha256 over names and hashes of the payload; logs are outside it, so equal results have equal digests."""
    return sha256_of({name: facts[kind.name] for name, facts in files.items() if not name.startswith(LOG)})


def verified_manifest(folder: Path, kind: Hash = SHA256) -> dict[str, Any]:
    """The manifest of a directory whose every file has the size and the hash that it states.

    Raises: ArtifactError naming the first file that is missing, extra or damaged.
    """
    remedy = "run the same command again: it is computed anew"
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = manifest["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError("artifact has no readable manifest", value=folder, remedy=remedy) from error
    found = describe(folder, kind=kind)
    for name in sorted(found.keys() | files.keys()):
        if found.get(name) != files.get(name):
            raise ArtifactError("artifact is damaged", value=folder / name, remedy=remedy)
    if manifest.get("digest") != content_digest(files, kind):
        raise ArtifactError("manifest is damaged", value=folder, remedy=remedy)
    return manifest


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def json_text(value: object) -> str:
    """What `write_json` writes of a value."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_text(json_text(value), encoding="utf-8")
    fsync(temporary)
    failpoint("replace")
    temporary.replace(path)


def fsync(path: Path) -> None:
    """Force a file, or a directory's entries, to disk."""
    failpoint("fsync")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into an ArtifactError that says what to do."""
    remedies = {
        errno.ENOSPC: "free space, or run `trainyard gc`, or set TRAINYARD_HOME to a larger disk",
        errno.EDQUOT: "raise the quota, or set TRAINYARD_HOME to another disk",
        errno.EROFS: "set TRAINYARD_HOME to a writable folder",
        errno.EACCES: "set TRAINYARD_HOME to a folder that you may write to",
        errno.ENOTDIR: "set TRAINYARD_HOME to a folder, not a file",
        errno.EEXIST: "set TRAINYARD_HOME to a folder, not a file",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies or not _concerns(error, path):
            raise
        reason = os.strerror(error.errno).lower()
        raise ArtifactError(f"store can't be written ({reason})", value=error.filename or path, remedy=remedies[error.errno]) from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about this path, something below it or a folder above it; one that names no file may be."""
    if not isinstance(error.filename, (str, Path)):
        return True
    named = Path(error.filename).absolute()
    return named.is_relative_to(path) or path.is_relative_to(named)
