"""`trainyard doctor`: is everything here that a run needs, and what to do where it isn't."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.processes import Ledger
from flows.services import answers
from llm.artifact import Store, named_errors
from llm.errors import TrainyardError

CONSTRAINTS = Path(__file__).parent.parent / "infra" / "constraints.txt"
PINNED = (
    "prefect",
    "fastapi",
    "sqlalchemy",
    "ray",
    "torch",
    "datasets",
    "sentencepiece",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "mlflow-skinny",
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer; `remedy` is empty where all is well."""

    what: str
    fact: str
    remedy: str = ""

    @property
    def healthy(self) -> bool:
        return not self.remedy


def examine(store: Store) -> list[Finding]:
    """Every check, each of which says a fact and, where it is bad, the remedy."""
    checks: list[Callable[[Store], Finding]] = [_python, _pins, _store, _disk, _memory, _cores, _gpu, _prefect, _ray, _registry]
    return [check(store) for check in checks]


def _python(store: Store) -> Finding:
    version = platform.python_version_tuple()
    good = (int(version[0]), int(version[1])) >= (3, 11)
    return Finding("python", platform.python_version(), "" if good else "install Python 3.11 or newer")


def _pins(store: Store) -> Finding:
    """The installed versions against infra/constraints.txt."""
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    wrong = [
        f"{name} {installed} instead of {pins[name]}"
        for name in PINNED
        if (installed := importlib.metadata.version(name).split("+")[0]) != pins[name]
    ]
    return Finding(
        "versions",
        ", ".join(wrong) or f"{len(PINNED)} pinned libraries match",
        "pip install -c infra/constraints.txt -e ." if wrong else "",
    )


def _store(store: Store) -> Finding:
    try:
        with named_errors(store.root):
            store.root.mkdir(parents=True, exist_ok=True)
            (store.root / ".writable").touch()
            (store.root / ".writable").unlink()
    except TrainyardError as error:
        return Finding("store", f"{store.root}: {error.fact}", error.remedy)
    return Finding("store", str(store.root))


def _disk(store: Store) -> Finding:
    root = next(path for path in (store.root, *store.root.parents) if path.exists())
    free = shutil.disk_usage(root).free / 1e9
    return Finding("disk", f"{free:.1f} GB free", "" if free > 2 else "free some: `trainyard gc`, or set TRAINYARD_HOME to a larger disk")


def _memory(store: Store) -> Finding:
    free = psutil.virtual_memory().available / 2**30
    return Finding("memory", f"{free:.1f} GiB available", "" if free > 3 else "close other programs: the tiny recipe needs about 3 GiB")


def _cores(store: Store) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", str(cores), "" if cores >= 2 else "set cluster.workers to 1: the tiny recipe trains on 2 cores")


def _gpu(store: Store) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("gpu", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return Finding("gpu", "none: training runs on the processor")


def _prefect(store: Store) -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    servers = Ledger(store).alive("prefect-server")
    url = url or (str(servers[0].facts["url"]) if servers else None)
    if url is None:
        return Finding("prefect", "embedded: starts with each run")
    alive = answers(f"{url}/health")
    return Finding(
        "prefect",
        f"{url} {'answers' if alive else 'does not answer'}",
        "" if alive else "start it: `trainyard up`, or correct PREFECT_API_URL",
    )


def _ray(store: Store) -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    heads = Ledger(store).alive("ray")
    if address is None and not heads:
        return Finding("ray", "local: starts with each training")
    address = address or str(heads[0].facts["address"])
    from llm.cluster.connect import reachable

    good = reachable(address)
    return Finding(
        "ray", f"{address} {'answers' if good else 'does not answer'}", "" if good else "start it: `trainyard up`, or correct RAY_ADDRESS"
    )


def _registry(store: Store) -> Finding:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith("http"):
        good = answers(f"{uri.rstrip('/')}/health")
        return Finding("registry", f"{uri} {'answers' if good else 'does not answer'}", "" if good else "correct MLFLOW_TRACKING_URI")
    path = store.root / "mlflow.db"
    if not path.exists():
        return Finding("registry", "SQLite in the store: made by the first promotion")
    with sqlite3.connect(path.as_uri() + "?mode=ro", uri=True) as database:
        verdict = database.execute("PRAGMA quick_check").fetchone()[0]
    return Finding("registry", f"{path} {verdict}", "" if verdict == "ok" else "restore mlflow.db from a backup")
