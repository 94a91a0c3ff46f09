"""Folders that want more than to be served: nothing outside them is read, nothing of them runs, and the process lives."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.errors import ArtifactError
from llm.serve.engine.config import EngineConfig
from llm.serve.models.config import LoadConfig, ModelsConfig
from llm.serve.models.release import Release
from llm.serve.models.served import load
from tests.serve.models.hostile import Case, cases

CASES = cases()
CONFIG = ModelsConfig(engine=EngineConfig(threads=1, slots=2), load=LoadConfig(seconds=20))
OPENED, READ = 0x20, 0x01  # of inotify


class Honeypot:
    """A folder beside the model's, whose files nobody has a reason to open; the kernel tells if somebody did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "secret").write_bytes(b"canary!!" * 64)
        os.mkfifo(folder / "pipe")
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK)
        for name in ("secret", "pipe"):
            assert libc.inotify_add_watch(self._events, os.fsencode(folder / name), OPENED | READ) > 0

    def touched(self) -> bool:
        """Whether a file of it was opened since the last time."""
        try:
            return len(os.read(self._events, 4096)) >= struct.calcsize("iIII")
        except BlockingIOError:
            return False


@pytest.fixture
def honeypot(tmp_path: Path) -> Iterator[Honeypot]:
    pot = Honeypot(tmp_path / "outside")
    yield pot
    os.close(pot._events)


def test_the_honeypot_notices(honeypot: Honeypot) -> None:
    assert not honeypot.touched()
    (honeypot.folder / "secret").read_bytes()
    assert honeypot.touched()


def attempt(case: Case, folder: Path, honeypot: Honeypot, tmp_path: Path) -> None:
    mutated = shutil.copytree(folder / "onnx", tmp_path / "model")
    case.change(mutated, honeypot.folder)
    answer = ""
    try:
        load(Release("", "1", mutated), "hostile", CONFIG).close()
    except ArtifactError as error:
        answer = str(error)
    assert case.refused in (None, bool(answer)), answer
    assert "canary" not in answer
    assert not honeypot.touched()
    assert not (honeypot.folder / "marker").exists()


def test_there_are_two_hundred() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_folder_that_they_were_made_of_is_served(folder: Path, honeypot: Honeypot) -> None:
    load(Release("", "1", folder), "good", CONFIG).close()


@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.name)
def test_hostile(case: Case, folder: Path, honeypot: Honeypot, tmp_path: Path) -> None:
    attempt(case, folder, honeypot, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for place, case in enumerate(CASES) if place % 6], ids=lambda case: case.name)
def test_more_hostile(case: Case, folder: Path, honeypot: Honeypot, tmp_path: Path) -> None:
    attempt(case, folder, honeypot, tmp_path)
