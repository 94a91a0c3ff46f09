"""A web site on loopback: real HTTP from threads, with a log of who asked for what, and answers as wrong as wanted."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

Reply = Callable[[BaseHTTPRequestHandler], None]
LAST_MODIFIED = formatdate(1_700_000_000, usegmt=True)
DEBIAN_DOCUMENTATION = ("python3-doc", "postgresql-doc", "python-django-doc")


@dataclass
class Request:
    """One line of the log; `status` is 0 until it is answered."""

    path: str
    headers: dict[str, str]
    began: float
    status: int = 0


@dataclass
class Site:
    """Pages and other answers by path, served while the `with` lasts."""

    replies: dict[str, bytes | Reply] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    on_request: Callable[[Request], None] | None = None
    host: str = "127.0.0.1"
    port: int = 0

    def __enter__(self) -> Site:
        self._lock = threading.Lock()
        self._server = _Server((self.host, 0), _handler(self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}:{self.port}{path}"

    def asked(self, path: str) -> list[Request]:
        """The requests for one path, in order."""
        return [request for request in self.log if request.path == path]

    def pages(self) -> list[tuple[str, bytes]]:
        """(url, body) of every page, by URL: what a crawl that reaches them all must find."""
        return sorted((self.url(path), body) for path, body in self.replies.items() if isinstance(body, bytes) and path != "/robots.txt")

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = Request(handler.path, {name.lower(): value for name, value in handler.headers.items()}, time.monotonic())
        with self._lock:
            self.log.append(request)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.on_request:
                self.on_request(request)
            reply = self.replies.get(handler.path, status(404))
            (page(reply) if isinstance(reply, bytes) else reply)(handler)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self._lock:
                self.in_flight -= 1
                request.status = getattr(handler, "answered", 0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Crawlers hang up: that is what many of these tests are about."""


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            site.answer(self)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            self.answered = int(code)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def send(handler: BaseHTTPRequestHandler, code: int, body: bytes = b"", **headers: str) -> None:
    """A whole response; an underscore in a header's name is a hyphen."""
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value.encode().decode("latin-1"))
    if code != 304:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def page(body: bytes, content_type: str = "text/html", **headers: str) -> Reply:
    """A page with ETag and Last-Modified, and 304 for who has it."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'

    def reply(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("If-None-Match") == etag:
            send(handler, 304, ETag=etag)
        else:
            send(handler, 200, body, Content_Type=content_type, ETag=etag, Last_Modified=LAST_MODIFIED, **headers)

    return reply


def status(code: int, **headers: str) -> Reply:
    """Nothing but a status."""
    return lambda handler: send(handler, code, **headers)


def redirect(location: str, code: int = 302) -> Reply:
    """A redirect."""
    return status(code, Location=location)


def in_turn(*replies: Reply) -> Reply:
    """One answer after the other; the last one for good."""
    waiting = list(replies)
    return lambda handler: (waiting.pop(0) if len(waiting) > 1 else waiting[0])(handler)


def late(seconds: float, reply: Reply) -> Reply:
    """The same answer after a while."""

    def later(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        reply(handler)

    return later


def stream(chunks: Callable[[], Iterator[bytes]], **headers: str) -> Reply:
    """A body in chunks, sent as they come."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in ({"Content_Type": "text/html", "Transfer_Encoding": "chunked"} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.flush()
        for chunk in chunks():
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    return reply


def html(*links: str, text: str = "") -> bytes:
    """A small page with links."""
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    return f"<!doctype html><html><head><title>{text}</title></head><body><p>{text}</p>{anchors}</body></html>".encode()


def compressed(body: bytes) -> Reply:
    """A page with gzip."""
    return lambda handler: send(handler, 200, gzip.compress(body, mtime=0), Content_Type="text/html", Content_Encoding="gzip")


def folder_site(folder: Path, *suffixes: str) -> dict[str, bytes | Reply]:
    """Every file of these kinds below a folder, by path, and its index at `/`."""
    kinds = {".html": "text/html", ".txt": "text/plain"}
    replies: dict[str, bytes | Reply] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes and path.is_file():
            place, body = "/" + path.relative_to(folder).as_posix(), path.read_bytes()
            replies[place] = body if path.suffix == ".html" else page(body, kinds[path.suffix])
    return replies


def write_pydoc(folder: Path, *, count: int) -> None:
    """The documentation of modules of the standard library as `pydoc -w` writes it, and an index of those outside packages."""
    folder.mkdir()
    code = (
        "import contextlib, pydoc, sys\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.suppress(Exception): pydoc.writedoc(name)\n"  # some are for other systems
    )
    command = [sys.executable, "-W", "ignore", "-c", code, *_documented()[:count]]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=300)
    names = sorted(path.name for path in folder.glob("*.html"))
    (folder / "index.html").write_bytes(html(*(name for name in names if name.count(".") == 1), text="Modules"))


def _documented() -> list[str]:
    """Modules whose import does nothing else, in an order that is no alphabet's, packages before their parts."""
    left_out = ("_", "antigravity", "this", "idlelib", "lib2to3", "test", "tkinter", "turtle", "config-", "site-packages", "dist-packages")
    root = Path(sysconfig.get_paths()["stdlib"])
    places = [path.relative_to(root).with_suffix("") for path in root.rglob("*.py")]
    names = {".".join(place.parts).removesuffix(".__init__") for place in places}
    fine = (name for name in names if not any(part.startswith(left_out) for part in name.split(".")))
    return sorted(fine, key=lambda name: (hashlib.sha256(name.partition(".")[0].encode()).digest(), name))


def write_debian_docs(folder: Path) -> Path:
    """Documentation that Debian packages ship as HTML, fetched by apt and unpacked: a folder with one per package.

    Raises: subprocess.CalledProcessError if apt can't get it.
    """
    folder.mkdir()
    packages = [package for name in DEBIAN_DOCUMENTATION for package in (name, *_depended_on(name)) if "-doc" in package]
    subprocess.run(["apt-get", "download", *packages], cwd=folder, check=True, capture_output=True, timeout=300)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True, capture_output=True, timeout=300)
    return folder / "usr/share/doc"


def _depended_on(package: str) -> list[str]:
    """Packages that a package needs: a documentation without a version in its name needs the one of today's version."""
    command = ["apt-cache", "depends", "--important", package]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    return [line.partition("Depends: ")[2] for line in lines if "Depends: " in line and "<" not in line]
