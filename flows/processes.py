"""The ledger of processes that belong to a store: who runs, who died, and what may be ended.

STORE/processes/<role>-<pid>.json names a process by its id and its birth, so that an id which the system has
given to another process since is never mistaken for ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llm.artifact import Store, named_errors, write_json
from llm.errors import DependencyError


@dataclass(frozen=True)
class Process:
    """A process in the ledger."""

    role: str
    pid: int
    birth: str
    facts: Mapping[str, Any]
    path: Path

    @property
    def alive(self) -> bool:
        return _birth(self.pid) == self.birth

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


def _birth(pid: int) -> str:
    """What tells this process from every other that ever had its id; empty if it has ended.

    On Linux the boot's id and the kernel's own count of ticks, which no step of the clock moves.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():
            return str(process.create_time())
        ticks = stat.read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""


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
            birth = _birth(pid)
            write_json(path, {"role": role, "pid": pid, "birth": birth, **facts})
        return Process(role, pid, birth, facts, path)

    def all(self, *roles: str) -> list[Process]:
        """Every process written down, dead ones too."""
        found = []
        for path in sorted(self.folder.glob("[!.]*.json")):
            with contextlib.suppress(FileNotFoundError):  # struck off by its own process meanwhile
                facts = json.loads(path.read_text())
                found.append(Process(facts.pop("role"), facts.pop("pid"), facts.pop("birth"), facts, path))
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
        """Start a process in a session of its own, its output in STORE/logs/<role>.log.

        It writes itself down before it becomes the command, so that one whose parent is killed meanwhile is known.
        """
        log = self.log(role)
        log.parent.mkdir(parents=True, exist_ok=True)
        introduced = [sys.executable, "-m", "flows.processes", str(self.store.root), role, json.dumps(facts), *command]
        with log.open("ab") as output:
            child = subprocess.Popen(
                introduced,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = Process(role, child.pid, _birth(child.pid), facts, self.folder / f"{role}-{child.pid}.json")
        if not wait_until(process.path.exists, process, timeout_seconds=60):
            raise DependencyError("a service did not start", value=" ".join(command), remedy=f"read {log}")
        return process

    def log(self, role: str) -> Path:
        return self.store.root / "logs" / f"{role}.log"


def wait_until(ready: Callable[[], bool], process: Process, *, timeout_seconds: float) -> bool:
    """Poll until `ready()` is true; false when the process dies or time is up."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if ready():
            return True
        if not process.alive:
            return False
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    root, role, facts, *command = sys.argv[1:]
    Ledger(Store(Path(root))).add(role, os.getpid(), **json.loads(facts))
    os.execv(command[0], command)
