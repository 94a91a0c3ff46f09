"""Giving up rights: what a process may still do once it turns to bytes that it doesn't trust.

Landlock takes away files and TCP, a seccomp filter the making of sockets and programs, resource limits memory, computing
time and writing. Nothing of it needs privileges, and nothing of it can be undone. Where a kernel lacks one (Landlock came
with Linux 5.13, its network part with 6.7), the others hold.

Source: https://docs.kernel.org/userspace-api/landlock.html; https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # system calls, with these numbers on every architecture
ONLY_VERSION, BENEATH_PATH = 1, 1
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3
RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many rights over files each version of Landlock knows
TCP, OUTSIDE_SCOPES = 0b11, 0b11  # bind and connect; abstract sockets of, and signals to, other processes
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # with EPERM
# Architecture as the kernel calls it, and its numbers of socket, socketpair, ptrace, execve, execveat, io_uring_setup.
CALLS = {
    "x86_64": (0xC000003E, (41, 53, 101, 59, 322, 425)),
    "aarch64": (0xC00000B7, (198, 199, 117, 221, 281, 425)),
}
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system")


def confine(readable: Iterable[Path], *, memory_bytes: int, seconds: float) -> list[str]:
    """Keep this process, and threads that it starts from now on, from all but computing and reading below these folders.

    Python and the system's libraries stay readable. The answer names what this kernel couldn't take away.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    _no_new_privileges()
    python = {Path(folder) for folder in (sys.prefix, sys.base_prefix, *sys.path) if folder}
    barred = {"files": _bar_files([*readable, *python, *map(Path, LIBRARIES)]), "sockets and programs": _bar_calls()}
    return [what for what, done in barred.items() if not done]


def _no_new_privileges() -> None:
    """Both filters want this first: a program with the setuid bit must not start inside them."""
    if _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _bar_files(readable: Iterable[Path]) -> bool:
    """Leave reading below these folders, and nothing else that touches a file."""
    version = _call("syscall", LANDLOCK_CREATE, None, 0, ONLY_VERSION)
    if version < 1:
        return False
    files = (1 << RIGHTS_BY_VERSION[min(version, max(RIGHTS_BY_VERSION))]) - 1
    rules = struct.pack("QQQ", files, TCP if version >= 4 else 0, OUTSIDE_SCOPES if version >= 6 else 0)
    ruleset = _call("syscall", LANDLOCK_CREATE, rules, 8 if version < 4 else 16 if version < 6 else 24, 0)
    if ruleset < 0:
        return False
    for path in readable:
        with contextlib.suppress(OSError):  # what isn't there needs no rule
            _allow_reading(ruleset, path)
    done = _call("syscall", LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return done


def _allow_reading(ruleset: int, path: Path) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = READ_FILE | READ_FOLDER if path.is_dir() else READ_FILE
        _call("syscall", LANDLOCK_ADD, ruleset, BENEATH_PATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _bar_calls() -> bool:
    """A filter that answers the calls of the table with EPERM, and calls of another architecture too."""
    if platform.machine() not in CALLS:
        return False
    architecture, calls = CALLS[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    refuse_at = len(calls) + 5
    program = [(load, 0, 0, 4), (equal, 0, refuse_at - 2, architecture), (load, 0, 0, 0), (at_least, refuse_at - 4, 0, 0x40000000)]
    program += [(equal, refuse_at - len(program) - place - 1, 0, call) for place, call in enumerate(calls)]
    program += [(answer, 0, 0, ALLOW), (answer, 0, 0, REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    return _call("prctl", SET_SECCOMP, FILTER, struct.pack("HP", len(program), ctypes.addressof(code)), 0, 0) == 0


def _call(name: str, *values: int | bytes | None) -> int:
    """A function of the C library; numbers go as full words, as the kernel reads them."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    return int(function(*(ctypes.c_ulong(value) if isinstance(value, int) else value for value in values)))
