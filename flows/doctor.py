"""`trainyard doctor`: is everything here that a run needs, and what to do where it isn't."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import httpx
import psutil

from flows.processes import Ledger
from llm.artifact import Store, named_errors
from llm.errors import TrainyardError
from llm.registry import SQLITE, of_store, redacted

INSTALL = "pip install -c infra/constraints.txt -e ."
RESTORE = "restore it from a backup, or move it away: the next promotion starts a new registry"
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
    try:
        pins = dict(re.findall(r"^([a-z0-9_.-]+)==(\S+)", CONSTRAINTS.read_text().lower(), re.MULTILINE))
    except OSError as error:
        return Finding("versions", f"{CONSTRAINTS}: {error.strerror}", f"run from a clone: {INSTALL}")
    wrong = [difference for name in PINNED if (difference := _difference(name, pins.get(name, "any version")))]
    return Finding("versions", ", ".join(wrong) or f"{len(PINNED)} pinned libraries match", INSTALL if wrong else "")


def _difference(name: str, pin: str) -> str:
    """How the installed library differs from its pin; empty where it doesn't."""
    try:
        installed = importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if installed == pin else f"{name} {installed} instead of {pin}"


def _store(store: Store) -> Finding:
    try:
        with named_errors(store.root):
            store.root.mkdir(parents=True, exist_ok=True)
            (store.root / ".writable").touch()
            (store.root / ".writable").unlink()
    except TrainyardError as error:
        return Finding("store", f"{store.root}: {error.fact}", error.remedy)
    except OSError as error:
        return Finding("store", f"{store.root}: {error.strerror}", "set TRAINYARD_HOME to a folder that you may write to")
    return Finding("store", str(store.root))


def _disk(store: Store) -> Finding:
    root = next(path for path in (store.root, *store.root.parents) if os.path.exists(path))
    free = shutil.disk_usage(root).free / 1e9
    return Finding("disk", f"{free:.1f} GB free", "" if free > 2 else "free some: `trainyard gc`, or set TRAINYARD_HOME to a larger disk")


def _memory(store: Store) -> Finding:
    free = psutil.virtual_memory().available / 2**30
    return Finding("memory", f"{free:.1f} GiB available", "" if free > 3 else "close other programs: the tiny recipe needs about 3 GiB")


def _cores(store: Store) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", str(cores), "" if cores >= 2 else "set cluster.workers to 1: the tiny recipe trains on 2 cores")


def _gpu(store: Store) -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # a shared library of the wrong chip is an OSError
        return Finding("gpu", f"torch can't be imported ({error})", INSTALL)
    if torch.cuda.is_available():
        return Finding("gpu", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return Finding("gpu", "none: training runs on the processor")


def _prefect(store: Store) -> Finding:
    servers = Ledger(store).alive("prefect-server")
    url = os.environ.get("PREFECT_API_URL") or (str(servers[0].facts["url"]) if servers else "")
    if not url:
        return Finding("prefect", "embedded: starts with each run")
    return _service("prefect", url, "start it: `trainyard up`, or correct PREFECT_API_URL")


def _service(what: str, url: str, remedy: str) -> Finding:
    """Whether a service says that it is in health."""
    try:
        status = httpx.get(f"{url.rstrip('/')}/health", timeout=5, follow_redirects=True).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(what, f"{redacted(url)} does not answer ({type(error).__name__})", remedy)
    if status != httpx.codes.OK:
        return Finding(what, f"{redacted(url)} answers with status {status}", remedy)
    return Finding(what, f"{redacted(url)} answers")


def _ray(store: Store) -> Finding:
    heads = Ledger(store).alive("ray")
    address = os.environ.get("RAY_ADDRESS") or (str(heads[0].facts["address"]) if heads else "")
    if not address:
        return Finding("ray", "local: starts with each training")
    try:
        from llm.cluster.connect import reachable
    except ImportError as error:
        return Finding("ray", f"ray can't be imported ({error})", INSTALL)
    if reachable(address):
        return Finding("ray", f"{redacted(address)} answers")
    remedy = "start it: `trainyard up`, or set RAY_ADDRESS to host:port, or unset it"
    return Finding("ray", f"{redacted(address)} does not answer", remedy)


def _registry(store: Store) -> Finding:
    """The server's health; or SQLite's own check of the file, and whether the champions can be read from it."""
    uri = of_store(store).uri
    if uri.startswith("http"):
        return _service("registry", uri, "start it, or correct MLFLOW_TRACKING_URI")
    if not uri.startswith(SQLITE):
        return Finding("registry", f"{redacted(uri)}: not examined, only http and sqlite addresses are")
    path = Path(uri.removeprefix(SQLITE)).absolute()
    if not path.exists():
        return Finding("registry", f"{path}: made by the first promotion")
    return _sqlite(store, path)


def _sqlite(store: Store, path: Path) -> Finding:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            verdict = str(database.execute("PRAGMA quick_check").fetchone()[0])
        champions = len(of_store(store).champions())
    except sqlite3.Error as error:
        return Finding("registry", f"{path}: {error}", RESTORE)
    except TrainyardError as error:
        return Finding("registry", f"{path}: {error.fact}", error.remedy)
    if verdict != "ok":
        return Finding("registry", f"{path}: {shorten(verdict, 200)}", RESTORE)
    return Finding("registry", f"{path} {verdict}, champions: {champions}")
