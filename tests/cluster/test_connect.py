"""The local Ray: closed to others, and gone with the block that started it."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import psutil
import pytest
import ray

from llm.cluster.connect import connected, join, own_signal_handlers, reachable
from llm.errors import CapacityError
from llm.train.config import ClusterConfig


@pytest.mark.usefixtures("ray_cluster")
def test_the_token_is_readable_by_its_owner_only(home: Path) -> None:
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert path.parent == home
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text()) == 64


@pytest.mark.usefixtures("ray_cluster")
def test_it_listens_on_the_loopback_interface_only() -> None:
    processes = psutil.Process().children(recursive=True)
    listening = [each.laddr.ip for process in processes for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.usefixtures("ray_cluster")
def test_a_connection_that_exists_is_used_and_left_open(two_workers: ClusterConfig, home: Path) -> None:
    with connected(two_workers, home):
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_handlers_of_signals_are_kept() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with own_signal_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(CapacityError, match=r"127\.0\.0\.1:9; start it, or unset RAY_ADDRESS"):
        join("127.0.0.1:9")


def test_reachable_means_that_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reachable(f"127.0.0.1:{port}")
        assert reachable(f"ray://127.0.0.1:{port}")
    assert not reachable(f"127.0.0.1:{port}")
    assert not reachable("nowhere")
