"""Hashes that are the same in every process, on every machine and in every version of Python."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.artifact import sha256_file
from llm.errors import ArtifactError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def share(id: str, purpose: str) -> float:
    """A place in [0, 1) for this id, independent between purposes.

    Whoever draws by it keeps the draw when other documents come and go.

    Example:
        >>> 0 <= share("a", "split") < 1, share("a", "split") == share("a", "sample")
        (True, False)
    """
    digest = hashlib.sha256(f"{purpose}\n{id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def fingerprints(files: Iterable[tuple[str, Path]]) -> list[dict[str, Any]]:
    """What identifies the content of (name, path) files, by name: a touched file is the same, a changed byte is not."""
    return [{"path": name, "bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in sorted(files)]


def _sha256(path: Path) -> str:
    """Hash of a file, computed once per process for a file that nobody touches."""
    facts = path.stat()
    return _sha256_as_of(path.absolute(), facts.st_size, facts.st_mtime_ns, facts.st_ino)


@functools.lru_cache(maxsize=1_000_000)
def _sha256_as_of(path: Path, *facts: int) -> str:
    return sha256_file(path)


def weight_fingerprints(folder: Path) -> list[dict[str, Any]]:
    """What identifies the model in a folder: its configuration and its weights.

    Raises: ArtifactError if there is no such folder: no key is made of nothing.
    """
    if not folder.is_dir():
        raise ArtifactError("no such folder of a model", value=folder, remedy="name one with config.json and model.safetensors")
    return fingerprints((path.name, path) for path in (folder / "config.json", *folder.glob("*.safetensors")) if path.is_file())


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scrambled bits of each number: the finaliser of SplitMix64, https://prng.di.unimi.it/splitmix64.c."""
    x = x + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
