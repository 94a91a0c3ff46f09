"""HTTP written by hand, for what no client library would send."""

from __future__ import annotations

import json
import socket
from typing import Any


def connect(address: str) -> socket.socket:
    """A connection to a server's address."""
    return socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=20)


def post(path: str, body: Any, *headers: str) -> bytes:
    """A whole POST of JSON."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    while part := _part(connection):
        data += part
    return data


def _part(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65_536)
    except ConnectionError:
        return b""


def exchange(address: str, request: bytes) -> bytes:
    """Send bytes, and read until the server closes."""
    with connect(address) as connection:
        connection.sendall(request)
        return received(connection)


def status(answer: bytes) -> int:
    """The status of an answer; 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
