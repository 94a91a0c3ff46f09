"""`trainyard chat` as somebody types it: in a terminal, and in a pipe."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llm.errors import DependencyError
from llm.serve.chat import Answer, Talk, models, printable, stream

TRAINYARD = str(Path(sys.executable).parent / "trainyard")
PATIENCE_SECONDS = 60


class Terminal:
    """A terminal in which `trainyard chat` runs."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.shown, self._decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        self._master, slave = pty.openpty()
        variables = {**os.environ, "TERM": "dumb", "COLUMNS": "200", **environment}
        self.process = subprocess.Popen(
            [TRAINYARD, "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=variables,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def settle(self) -> None:
        """Return once the program waits for a key: a prompt is shown a moment before, and readline misses a signal in between."""
        process, quiet = psutil.Process(self.process.pid), 0
        while quiet < 3:
            before = process.cpu_times()
            time.sleep(0.1)
            quiet = quiet + 1 if process.cpu_times() == before and process.status() == psutil.STATUS_SLEEPING else 0

    def until(self, pattern: str) -> str:
        """What was shown since the last look, up to and with the pattern."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{pattern!r} was never shown: {self.shown!r}")
            if select.select([self._master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.shown += self._decoder.decode(os.read(self._master, 65_536)).replace("\r", "")
        seen, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return seen

    def end(self) -> int:
        self.type("/quit\n")
        return self.process.wait(timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _take_terminal() -> None:
    """Make standard input the terminal of this session, so that Ctrl-C arrives as a signal, and none is ignored that these tests ignore."""
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(address: str) -> Iterator[Terminal]:
    opened = Terminal("--url", address)
    yield opened
    opened.close()


def test_a_conversation_in_a_terminal(terminal: Terminal) -> None:
    assert "small at http://127.0.0.1" in terminal.until("you › ")
    terminal.type("what is it?\n")
    first = terminal.until(r"/s · first after \d+ ms\n.*you › ")
    assert len(first.splitlines()) >= 3
    terminal.type("/model large\n")
    terminal.until("offered: small\n.*you › ")
    terminal.type("/system Be brief.\n")
    terminal.until("instructions set\n.*you › ")
    terminal.type("/reset\n")
    terminal.until("forgotten\n.*you › ")
    terminal.type("/unheard\n")
    terminal.until("no such command.*you › ")
    assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.until("you › ")
    for _ in range(2):
        terminal.type("go on\n")
        terminal.until("small › .")
        terminal.type("\x03")
        terminal.until("(stopped|ms)\n.*you › ")
    terminal.settle()
    terminal.type("\x03")
    terminal.until("Ctrl-D or /quit leaves\n.*you › ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=PATIENCE_SECONDS) == 0


def piped(said: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(
        [TRAINYARD, "chat", *arguments], input=said, capture_output=True, text=True, env=variables, timeout=PATIENCE_SECONDS
    )


def test_a_pipe_is_one_message(address: str) -> None:
    answer = piped("what\nis it?\n", "--url", f"{address}/v1", "--model", "small")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.strip()
    assert "you ›" not in answer.stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_errors_are_one_line(address: str) -> None:
    cases = [
        (("--url", f"http://127.0.0.1:{free_port()}"), "x", "no answer from the server: http://127.0.0.1:"),
        (("--url", "nonsense"), "x", "no answer from the server: nonsense"),
        (("--url", address, "--model", "large"), "x", "the server refuses (404)"),
        (("--url", address, "--key-env", "UNSET_KEY"), "x", "no key: UNSET_KEY is not set"),
        (("--url", address), " \n", "nothing was said"),
    ]
    for arguments, said, message in cases:
        answer = piped(said, *arguments)
        assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (1, "", 1), answer.stderr
        assert message in answer.stderr


def test_the_conversation_is_what_the_server_is_sent() -> None:
    talk = Talk("m", system="Be brief.").after("one", "two")
    roles = [message["role"] for message in talk.messages("three")]
    assert roles == ["system", "user", "assistant", "user"]
    assert Talk("m").messages("x") == [{"role": "user", "content": "x"}]


def test_a_model_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\x9b2J\x07é🙂\r\n\tb\x7f") == "a[2J2Jé🙂\n\tb"


@contextlib.contextmanager
def answering(*parts: bytes, status: bytes = b"200 OK") -> Iterator[str]:
    """The address of something on the network that answers every request alike and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n\r\n" + b"".join(parts))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):  # a close with something unread would reset the connection
                        pass
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"<html>", b"200 OK", "doesn't speak OpenAI's interface"),
        (b"[]", b"200 OK", "doesn't speak OpenAI's interface"),
        (b'{"data": []}', b"200 OK", "no model is served"),
        (rb'{"error": {"message": "a \u001b[2J key"}}', b"401 Unauthorized", r"refuses \(401\): a .* key; name the variable"),
        (b"oops", b"502 Bad Gateway", "it gives no reason"),
    ],
)
def test_another_server_is_met_with_words(content: bytes, status: bytes, message: str) -> None:
    with answering(content, status=status) as address, httpx.Client(base_url=address) as client:
        with pytest.raises(DependencyError, match=message):
            models(client)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "closed the connection"),
        ([{"choices": [{"delta": {"content": "a"}}]}], "closed the connection"),
        ([{"error": {"message": "out of memory"}}], "out of memory"),
        (["nonsense"], "doesn't speak"),
    ],
)
def test_a_broken_answer_is_said(events: list[Any], message: str) -> None:
    lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode() for event in events]
    with answering(*lines) as address, httpx.Client(base_url=address) as client:
        with pytest.raises(DependencyError, match=message):
            list(stream(client, "m", [], Answer()))
