"""A connection to Ray: a cluster that is running, or one of this machine for as long as this process needs it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import ray

from llm.errors import CapacityError
from llm.train.config import ClusterConfig

OBJECT_STORE_BYTES = 128 * 2**20  # nothing large travels through Ray: workers read rows and write checkpoints on disk


@contextlib.contextmanager
def connected(cluster: ClusterConfig, home: Path) -> Iterator[None]:
    """Be connected to Ray inside the block: to the cluster at RAY_ADDRESS, else to one that is started here.

    A cluster that is started here listens on the loopback interface only, asks for a token, sends no usage data,
    and ends with the block. A connection that already exists is used and left open.

    Raises: CapacityError if nothing answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    with own_signal_handlers():
        if address:
            join(address)
        else:
            start(cluster, home)
    try:
        yield
    finally:
        ray.shutdown()


def join(address: str) -> None:
    """Connect to a running cluster.

    Raises: CapacityError if nothing answers there.
    """
    if not reachable(address):
        raise CapacityError("no Ray cluster answers", value=address, remedy="start it, or unset RAY_ADDRESS")
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def start(cluster: ClusterConfig, home: Path) -> None:
    """Start a cluster of this machine with room for all workers, and connect to it."""
    os.environ.update(token_environment(home))
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, cluster.workers * cluster.cpus_per_worker),
        include_dashboard=cluster.dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=OBJECT_STORE_BYTES,
        _system_config={"prestart_worker_first_driver": False},  # idle processes that no training worker can use
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def reachable(address: str, timeout_seconds: float = 5.0) -> bool:
    """Whether something listens at `host:port` or `ray://host:port`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout_seconds).close()
    except (OSError, ValueError):
        return False
    return True


def token_environment(home: Path) -> dict[str, str]:
    """Variables by which only holders of a token may talk to a cluster; it lies under `home`, for its owner's eyes.

    Ray asks for a token by default, but would write it where everybody on the machine may read it. One that the
    user set stays. RAY_AUTH_MODE is left alone: set after Ray was imported, the two sides of the connection disagree.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return {}
    path = home.absolute() / "ray-token"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        whole = path.with_name(f".ray-token-{secrets.token_hex(4)}")
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another run of this store was first: its token holds
            path.hardlink_to(whole)
        whole.unlink()
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


@contextlib.contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Keep this process's handlers of SIGTERM and SIGINT, which Ray replaces: with them a cancelled flow ends cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
