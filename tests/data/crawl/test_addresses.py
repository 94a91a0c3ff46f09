from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpcore
import pytest
from pydantic import ValidationError

from llm.data.sources.crawl.addresses import PinnedBackend, RefusedAddress, is_public, resolved
from llm.data.sources.crawl.archive import Archive
from llm.data.sources.crawl.config import CrawlSource
from llm.data.sources.crawl.fetch import Fetcher
from llm.data.sources.crawl.frontier import crawl
from tests.data.crawl.conftest import crawled, source_of
from tests.data.site import Site, html, redirect

LOOPBACK_NAMES = (
    *("127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "0177.0.0.1", "0177.1"),
    *("017700000001", "0x7F000001", "00177.0.0.01", "127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "0", "0.0.0.0", "0x0", "00.0"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]"),
    *("[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%25lo]", "[fec0::1]", "[fc00::1]", "[fd00::1]"),
    *("①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1", "ⓛocalhost", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "ｌｏｃａｌｈｏｓｔ"),
)
OTHER_NAMES = (
    *("169.254.169.254", "0xA9FEA9FE", "2852039166", "0251.0376.0251.0376", "169.254.43518", "0xa9.254.0xa9.254", "[::ffff:a9fe:a9fe]"),
    *("[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16", "192.0.0.192", "10.0.0.1", "10.1", "0x0a000001"),
    *("167772161", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.1", "3232235521", "0xc0a80001", "0300.0250.0.1"),
    *("100.64.0.1", "100.127.255.255", "[fd12:3456:789a::1]", "[febf::1]", "[::a9fe:a9fe]", "[64:ff9b::10.0.0.1]", "0xa.1"),
    *("198.18.0.1", "198.19.255.255", "192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.255", "4294967295", "0.0.0.1", "0.255.255.255", "[ff02::1]", "[ff0e::1]", "[2001:db8::1]", "[3fff::1]"),
    *("[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[2001:0:a9fe:a9fe::1]", "[::10.0.0.1]", "[100::1]", "[5f00::1]", "[2001:10::1]"),
    *("[::ffff:0:127.0.0.1]", "[0:0:0:0:0:ffff:10.0.0.1]", "[fe80::5efe:10.0.0.1]", "[2001:2::1]", "[4000::1]", "[e000::1]"),
)
STRANGE_URLS = (
    *("file:///etc/passwd", "gopher://127.0.0.1:{port}/", "ftp://127.0.0.1/", "http://user@127.0.0.1:{port}/", "http://a:b@[::1]:{port}/"),
    *("http://example.org@127.0.0.1:{port}/", "http://127.0.0.1:{port}#@example.org/", "http://127.0.0.1:{port}\\@example.org/"),
    *("http:127.0.0.1:{port}", "http:///127.0.0.1:{port}", "//127.0.0.1:{port}/", "http://127.0.0.1:{port}?@example.org/", "dict://[::1]/"),
    *("http://\t127.0.0.1:{port}/", "http://127.0.0.1\n:{port}/", "https://127.0.0.1:{port}/", "data:text/html,x", "http://[::1]:{port}"),
    *("javascript:fetch('/')", "http://example.org:80@[::1]:{port}/", "unix:/run/docker.sock", "http://0:{port}/", "jar:http://0/!/"),
)


class Recorded(httpcore.AsyncNetworkBackend):
    """Connections for real, and a list of where to."""

    def __init__(self) -> None:
        self.attempts: list[str] = []

    async def connect_tcp(self, host: str, port: int, *rest: Any) -> httpcore.AsyncNetworkStream:
        self.attempts.append(host)
        return await httpcore.AnyIOBackend().connect_tcp(host, port, *rest)


class Flipping:
    """A name server that answers otherwise each time."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def listener() -> Iterable[socket.socket]:
    with socket.create_server(("", 0)) as server:
        server.setblocking(False)
        yield server


def outcomes_of(source: CrawlSource, home: Path, backend: httpcore.AsyncNetworkBackend) -> dict[str, str]:
    async def run() -> dict[str, str]:
        with Archive(home / "archive", "now") as archive:
            async with Fetcher(source, backend) as fetcher:
                return await crawl(source, archive, fetcher)

    return asyncio.run(run())


def assert_nobody_came(listener: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_no_form_of_a_private_address_is_connected_to(listener: socket.socket, tmp_path: Path) -> None:
    port = listener.getsockname()[1]
    urls = [f"http://{name}:{port}/" for name in (*LOOPBACK_NAMES, *OTHER_NAMES)] + [url.format(port=port) for url in STRANGE_URLS]
    assert len(set(urls)) >= 120
    network = Recorded()
    refused = 0
    for number, url in enumerate(urls):
        try:
            source = CrawlSource(seeds=[url], hosts=["*"], tries=1)
        except ValidationError:
            refused += 1
            continue
        found = outcomes_of(source, tmp_path / str(number), PinnedBackend(network=network))
        assert set(found.values()) <= {"robots_unreachable"}, url
    assert network.attempts == []
    assert refused < len(urls) / 4
    assert_nobody_came(listener)


def test_a_public_site_that_leads_inwards_is_not_followed(listener: socket.socket, tmp_path: Path) -> None:
    """The site counts as public since its one address is allowed; what it redirects and links to is not."""
    port = listener.getsockname()[1]
    targets = [f"http://{name}:{port}/" for name in (*LOOPBACK_NAMES, *OTHER_NAMES)]
    with Site(host="127.0.0.77") as site:
        site.replies |= {f"/{number}": redirect(target) for number, target in enumerate(targets)}
        site.replies["/"] = html(*site.replies, *targets)
        network = Recorded()
        found = outcomes_of(source_of(site, hosts=["*"], tries=1), tmp_path, PinnedBackend(["127.0.0.77/32"], network=network))
        assert len(site.log) == 2 + len(targets)
    assert {url for url, reason in found.items() if not reason} == {site.url()}
    assert set(found.values()) == {"", "robots_unreachable", "redirect_refused"}
    assert set(network.attempts) == {"127.0.0.77"}
    assert_nobody_came(listener)


def test_a_name_is_resolved_once_and_the_checked_address_is_used(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html("/a"), "/a": html()}
    source = source_of(site, seeds=[f"http://site.test:{site.port}/"], connections_per_host=1)
    names, network = Flipping(["127.0.0.1"]), Recorded()
    found = outcomes_of(source, tmp_path, PinnedBackend(["127.0.0.0/8"], resolve=names, network=network))
    assert list(found.values()) == ["", ""]
    assert set(network.attempts) == {"127.0.0.1"}
    assert names.asked == len(network.attempts)
    assert {request.headers["host"] for request in site.log} == {f"site.test:{site.port}"}


def test_a_name_that_changes_its_address_gains_nothing(site: Site) -> None:
    """DNS rebinding: harmless when it is checked, private when it is used, and the next time."""
    names, network = Flipping(["127.0.0.1"], ["10.0.0.1"]), Recorded()
    backend = PinnedBackend(["127.0.0.1/32"], resolve=names, network=network)

    async def connect() -> None:
        await (await backend.connect_tcp("rebind.test", site.port)).aclose()
        with pytest.raises(RefusedAddress):
            await backend.connect_tcp("rebind.test", site.port)

    asyncio.run(connect())
    assert network.attempts == ["127.0.0.1"]
    assert names.asked == 2


@pytest.mark.parametrize("answer", ["10.0.0.1", "93.184.216.34 127.0.0.1", "2606:4700::1 ::1", "::ffff:10.0.0.1", "fe80::1%lo"])
def test_one_bad_address_of_a_name_is_enough(answer: str) -> None:
    network = Recorded()
    backend = PinnedBackend(resolve=Flipping(answer.split()), network=network)
    with pytest.raises(RefusedAddress):
        asyncio.run(backend.connect_tcp("rebind.test", 80))
    assert network.attempts == []


def test_tls_is_told_the_name_and_wants_its_certificate(tmp_path: Path) -> None:
    """The server has no certificate for it, so nothing is asked."""
    told: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda connection, name, context: told.append(name)  # type: ignore[assignment]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            with contextlib.suppress(OSError):
                context.wrap_socket(server.accept()[0], server_side=True)

        threading.Thread(target=refuse, daemon=True).start()
        source = CrawlSource(seeds=[f"https://site.test:{server.getsockname()[1]}/"], tries=1)
        backend = PinnedBackend(["127.0.0.0/8"], resolve=Flipping(["127.0.0.1"]))
        assert set(outcomes_of(source, tmp_path, backend).values()) == {"robots_unreachable"}
    assert told == ["site.test"]


def test_every_address_of_a_name_is_tried(site: Site) -> None:
    network = Recorded()
    backend = PinnedBackend(["127.0.0.0/8"], resolve=Flipping(["127.0.0.2", "127.0.0.1"]), network=network)

    async def connect() -> None:
        await (await backend.connect_tcp("two.test", site.port)).aclose()

    asyncio.run(connect())
    assert network.attempts == ["127.0.0.2", "127.0.0.1"]


def test_loopback_is_open_only_where_the_recipe_says_so(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = html()
    _, reasons = crawled(source_of(site, allow_networks=[], tries=1), tmp_path / "closed")
    assert reasons == {"/": "robots_unreachable"}
    assert site.log == []
    assert set(crawled(source_of(site), tmp_path / "open")[0]) == {"/"}


def test_public_is_never_more_than_python_says() -> None:
    """Against the table of the standard library: the corners of every network that either of them knows, and a lattice."""
    known = [*ipaddress._IPv4Constants._private_networks, *ipaddress._IPv6Constants._private_networks]  # type: ignore[attr-defined]
    corners = [network[place] for network in known for place in (0, -1)]
    lattice = [ipaddress.ip_address(number << 20) for number in range(2**12)]
    lattice += [ipaddress.ip_address(number << 116 | 1) for number in range(2**12)]
    wrong = [address for address in (*corners, *lattice) if is_public(address) and (not address.is_global or address.is_multicast)]
    assert wrong == []
    assert all(is_public(ipaddress.ip_address(address)) for address in ("1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1"))


def test_the_system_resolves_odd_spellings_to_what_they_mean() -> None:
    assert asyncio.run(resolved("0x7f.1", 80)) == ["127.0.0.1"]
    assert asyncio.run(resolved("2130706433", 80)) == ["127.0.0.1"]


NO_HOSTS = ("http://a..b/", f"http://{'a' * 64}.test/", f"http://{'a.' * 127}test/", "http://a../")


@pytest.mark.parametrize("name", ["a..b", "a" * 64 + ".test", "ü" * 64, ".a"])
def test_what_the_codec_for_names_refuses_is_refused(name: str) -> None:
    with pytest.raises(RefusedAddress, match="no name"):
        asyncio.run(PinnedBackend().connect_tcp(name, 80))


def test_a_host_that_is_no_name_does_not_end_the_crawl(site: Site, tmp_path: Path) -> None:
    """From a link, a redirect of a page, a sitemap, and a redirect of robots.txt."""
    urls = "".join(f"<url><loc>{url}</loc></url>" for url in (*NO_HOSTS, site.url("/named")))
    site.replies |= {"/": html(*NO_HOSTS, "/odd", "/good"), "/odd": redirect(NO_HOSTS[0]), "/good": html(), "/named": html()}
    site.replies["/s.xml"] = f"<urlset>{urls}</urlset>".encode()
    with Site() as other:
        other.replies |= {"/": html(), "/robots.txt": redirect(NO_HOSTS[0])}
        source = source_of(site, seeds=[site.url(), other.url()], sitemaps=[site.url("/s.xml")], hosts=["*"])
        found = outcomes_of(source, tmp_path, PinnedBackend(["127.0.0.0/8"]))
        expected = {site.url(path): "" for path in ("/", "/good", "/named")}
        assert found == expected | {site.url("/odd"): "redirect_refused", other.url(): "robots_unreachable"}


def test_nobody_is_asked_for_rules_that_there_is_no_room_for(site: Site, tmp_path: Path) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    site.replies["/"] = html(*(f"http://h{number:03}.test:{site.port}/x" for number in range(200)))
    site.replies["/x"] = html()
    source = source_of(site, seeds=[f"http://a.test:{site.port}/"], hosts=["*"], max_pages=4)
    found = outcomes_of(source, tmp_path, PinnedBackend(["127.0.0.0/8"], resolve=resolve))
    assert len(found) == 4
    assert set(asked) == {"a.test", "h000.test", "h001.test", "h002.test"}
