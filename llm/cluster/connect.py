"""A connection to Ray: a cluster that is running, or one of this machine for as long as this process needs it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import ray

from llm.errors import CapacityError
from llm.train.config import ClusterConfig

OBJECT_STORE_BYTES = 128 * 2**20  # nothing large travels through Ray: workers read rows and write checkpoints on disk


@contextlib.contextmanager
def connected(cluster: ClusterConfig, home: Path, address: str | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block: to `address`, else to RAY_ADDRESS, else to a cluster started here.

    A cluster that is started here listens on the loopback interface only, asks for a token, sends no usage data,
    and ends with the block. A connection that already exists is used and left open.

    Raises: CapacityError if no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    with own_signal_handlers():
        _connect(cluster, home, address or os.environ.get("RAY_ADDRESS"))
    try:
        yield
    finally:
        ray.shutdown()


def _connect(cluster: ClusterConfig, home: Path, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise CapacityError("no Ray cluster answers", value=address, remedy="start it, or unset RAY_ADDRESS") from error
        return
    _ask_for_token(home)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, cluster.workers * cluster.cpus_per_worker),
        include_dashboard=cluster.dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _ask_for_token(home: Path) -> None:
    """Let only holders of a token talk to the cluster; the token lies under `home`, readable by its owner only.

    Ray asks for one by default, but would write it where everybody on the machine may read it.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = home.absolute() / "ray-token"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


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
