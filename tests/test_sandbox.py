"""What a confined process can't do any more, each tried by one."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="Linux's filters")

ATTEMPTS = """
import ctypes, json, os, signal, socket, subprocess, sys, threading
from pathlib import Path
from llm.sandbox import confine
inside, outside, folder = map(Path, sys.argv[1:])
lacking = confine([inside], memory_bytes=1 << 30, seconds=60)

def shared():
    socket.socketpair()

def exhaust():
    bytearray(2 << 30)

def in_thread():
    caught = []
    def read():
        try:
            outside.read_bytes()
        except OSError as error:
            caught.append(error)
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    if caught:
        raise caught[0]

attempts = {
    "read inside": lambda: (inside / "allowed").read_bytes(),
    "read": outside.read_bytes,
    "read in a thread": in_thread,
    "read through a link": (inside / "link").read_bytes,
    "list": lambda: os.listdir(folder),
    "read passwords": lambda: Path("/etc/passwd").read_bytes(),
    "write inside": lambda: (inside / "written").write_bytes(b"x"),
    "write": lambda: (folder / "written").write_bytes(b"x"),
    "append": lambda: outside.open("ab").write(b"x"),
    "delete": outside.unlink,
    "rename": lambda: outside.rename(folder / "renamed"),
    "make folder": lambda: (inside / "made").mkdir(),
    "link": lambda: os.link(outside, inside / "hard"),
    "run": lambda: subprocess.run(["/bin/true"]),
    "tcp": lambda: socket.socket(),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "pair": shared,
    "signal": lambda: os.kill(os.getppid(), 0),
    "memory": exhaust,
}
answers = {}
for name, attempt in attempts.items():
    try:
        attempt()
        answers[name] = "done"
    except (OSError, MemoryError) as error:
        answers[name] = type(error).__name__
print(json.dumps({"lacking": lacking, "answers": answers}))
"""


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sandbox")
    inside, outside = folder / "inside", folder / "secret"
    inside.mkdir()
    (inside / "allowed").write_text("read me")
    outside.write_text("canary")
    (inside / "link").symlink_to(outside)
    command = [sys.executable, "-P", "-c", ATTEMPTS, inside, outside, folder]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)}, cwd="/")
    assert outside.read_text() == "canary"
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_reading_inside_and_nothing_else_is_left(confined: dict[str, Any]) -> None:
    answers = dict(confined["answers"])
    if "files" in confined["lacking"]:
        pytest.skip("this kernel has no Landlock")
    assert answers.pop("read inside") == "done"
    assert {name for name, answer in answers.items() if answer not in ("PermissionError", "MemoryError")} == set()


def test_sockets_programs_and_memory_are_barred_without_landlock_too(confined: dict[str, Any]) -> None:
    assert confined["answers"]["memory"] == "MemoryError"
    if "sockets and programs" not in confined["lacking"]:
        assert [confined["answers"][name] for name in ("run", "tcp", "unix", "pair")] == ["PermissionError"] * 4


def test_computing_time_ends() -> None:
    code = "from llm.sandbox import confine; confine([], memory_bytes=1 << 30, seconds=0)\nwhile True: pass"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": str(root)}, capture_output=True).returncode < 0
