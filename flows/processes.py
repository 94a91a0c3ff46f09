"""The ledger of processes that belong to a store: who runs, who died, and what may be ended.

STORE/processes/<role>-<pid>.json names a process by its id and its start time, so that an id which the system has
given to another process since is never mistaken for ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llm.artifact import Store, named_errors, write_json


@dataclass(frozen=True)
class Process:
    """A process in the ledger."""

    role: str
    pid: int
    started: float
    facts: Mapping[str, Any]
    path: Path

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self, grace_seconds: float = 10.0) -> None:
        """End this process and its children, first asking, then not; and strike it from the ledger."""
        if self.alive:
            family = [psutil.Process(self.pid), *_children(self.pid)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            for process in psutil.wait_procs(family, timeout=grace_seconds)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.path.unlink(missing_ok=True)


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


class Ledger:
    """The processes of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.root / "processes"

    def add(self, role: str, pid: int, **facts: Any) -> Process:
        """Write a process down."""
        with named_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{role}-{pid}.json"
            started = psutil.Process(pid).create_time()
            write_json(path, {"role": role, "pid": pid, "started": started, **facts})
        return Process(role, pid, started, facts, path)

    def all(self, *roles: str) -> list[Process]:
        """Every process written down, dead ones too."""
        found = []
        for path in sorted(self.folder.glob("[!.]*.json")):
            with contextlib.suppress(FileNotFoundError):  # struck off by its own process meanwhile
                facts = json.loads(path.read_text())
                found.append(Process(facts.pop("role"), facts.pop("pid"), facts.pop("started"), facts, path))
        return [process for process in found if not roles or process.role in roles]

    def alive(self, *roles: str) -> list[Process]:
        return [process for process in self.all(*roles) if process.alive]

    @contextlib.contextmanager
    def registered(self, role: str, **facts: Any) -> Iterator[Process]:
        """This process, in the ledger while the block runs."""
        process = self.add(role, os.getpid(), **facts)
        try:
            yield process
        finally:
            process.path.unlink(missing_ok=True)

    def start(self, role: str, command: Sequence[str], environment: Mapping[str, str], **facts: Any) -> Process:
        """Start a process in a session of its own, its output in STORE/logs/<role>.log, and write it down."""
        log = self.log(role)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        return self.add(role, child.pid, command=list(command), **facts)

    def log(self, role: str) -> Path:
        return self.store.root / "logs" / f"{role}.log"


def wait_until(ready: Any, process: Process, *, timeout_seconds: float) -> bool:
    """Poll until `ready()` is true; false when the process dies or time is up."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if ready():
            return True
        if not process.alive:
            return False
        time.sleep(0.1)
    return False
