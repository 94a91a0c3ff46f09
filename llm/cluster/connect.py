"""A connection to Ray: a cluster that is running, or one of this machine for as long as this process needs it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import ray

from llm.cluster.token import token_environment
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
    if address != "auto" and not reachable(address):
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
