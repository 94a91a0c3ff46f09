"""The process: where it listens, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm.errors import ArtifactError, CapacityError, RecipeError
from llm.serve.endpoint.config import Settings
from llm.serve.endpoint.server import check_exposure, serve
from llm.serve.endpoint.settings import load_settings
from llm.serve.models.spec import ModelSpec
from tests.serve.endpoint import raw

LONG: Any = {"model": "m", "prompt": "x", "max_tokens": 3_900, "ignore_eos": True}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`trainyard serve` as a process, ready."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = ["trainyard", "serve", f"m={folder}", "--port", str(port), "--threads", "1", *options]
    code = f"import sys; sys.argv = {command!r}; from flows.cli import main; main()"
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        while True:
            assert server.poll() is None, server.communicate()[1]
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield server, address
    finally:
        server.kill()
        server.wait()


def running_line(metrics: str) -> str:
    """The line that tells how many answers are being written."""
    return next((line for line in metrics.splitlines() if line.startswith("trainyard_num_requests_running{")), "")


def test_sigterm_lets_running_answers_finish_and_refuses_others(folder: Path) -> None:
    with serving(folder) as (server, address):
        texts: list[str] = []

        def ask() -> None:
            answer = httpx.post(f"{address}/v1/completions", json=LONG, timeout=60)
            texts.append(answer.json()["choices"][0]["text"])

        asking = threading.Thread(target=ask)
        with httpx.Client(base_url=address) as kept, raw.connect(address) as stream:
            assert kept.get("/ready").status_code == 200
            stream.sendall(raw.post("/v1/completions", LONG | {"stream": True}))
            asking.start()
            while " 2.0" not in running_line(kept.get("/metrics").text):
                time.sleep(0.01)
            os.kill(server.pid, signal.SIGTERM)
            while kept.get("/ready").status_code == 200:
                time.sleep(0.01)
            refused = kept.post("/v1/completions", json=LONG | {"max_tokens": 1})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
            assert b"data: [DONE]" in raw.received(stream)
        asking.join()
        assert len(texts) == 1
        assert server.wait(timeout=20) == 0


def test_what_takes_too_long_is_ended(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("limits: {drain_seconds: 0.2}")
    with serving(folder, "--config", str(tmp_path / "settings.yaml")) as (server, address):
        with raw.connect(address) as stream:
            stream.sendall(raw.post("/v1/completions", LONG | {"stream": True}))
            stream.recv(100)
            os.kill(server.pid, signal.SIGTERM)
            raw.received(stream)
        assert server.wait(timeout=20) == 0


def test_an_interrupt_ends_it(folder: Path) -> None:
    with serving(folder) as (server, _):
        os.kill(server.pid, signal.SIGINT)
        assert server.wait(timeout=20) in (0, 130)


def test_a_taken_port_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CapacityError, match=f"127.0.0.1:{port} .*--port"):
            serve([ModelSpec.parse(str(folder))], Settings(port=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "models.example"])
def test_nobody_beyond_this_machine_is_served_without_keys(folder: Path, host: str) -> None:
    with pytest.raises(RecipeError, match="--keys"):
        serve([ModelSpec.parse(str(folder))], Settings(host=host))
    check_exposure(Settings(host=host, keys=folder))


@pytest.mark.parametrize(
    ("written", "changes", "message"),
    [
        ("limits: {body_bytes: 1}", {}, "limits.body_bytes"),
        ("hosts: 0.0.0.0", {}, "hosts"),
        ("- 1", {}, "no table"),
        ("a: [", {}, "can't be read"),
        ("", {"port": 99_999}, "port"),
    ],
)
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, written: str, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "settings.yaml").write_text(written)
    with pytest.raises(RecipeError, match=message):
        load_settings(tmp_path / "settings.yaml", changes, {})


def test_options_come_on_top_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(json.dumps({"port": 1, "host": "127.0.0.1", "models": {"engine": {"slots": 2, "threads": 3}}}))
    settings = load_settings(tmp_path / "settings.yaml", {"port": 2, "keys": None}, {"slots": 5, "threads": None})
    assert (settings.port, settings.models.engine.slots, settings.models.engine.threads) == (2, 5, 3)


def test_keys_that_cannot_be_read_are_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("no key")
    (tmp_path / "keys").chmod(0o644)
    with pytest.raises(ArtifactError, match="chmod 600"):
        serve([ModelSpec.parse("./nothing")], Settings(keys=tmp_path / "keys"))
