"""URLs: one spelling for each page, and which of them a crawl may visit."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv6Address
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from llm.data.sources.crawl.config import CrawlSource

MAX_CHARACTERS = 2048  # what sitemaps.org allows; longer ones come from traps
MAX_NAME_CHARACTERS = 253  # RFC 1035, section 2.3.4: 255 octets, of which two are the first length and the root
MAX_LABEL_CHARACTERS = 63
DEFAULT_PORTS = {"http": 80, "https": 443}
UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")

_plain = re.compile(r"[A-Za-z0-9._~/-]*")
_name = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_escape = re.compile(r"%([0-9A-Fa-f]{2})")
_stray_percent = re.compile(r"%(?![0-9A-Fa-f]{2})")


def canonical(reference: str, base: str = "", drop_parameters: Sequence[str] = ()) -> str | None:
    """The one spelling of a link's target; None if it is nothing to crawl: another scheme, a user name, no URL at all.

    Source: RFC 3986, section 6.2.2 and 6.2.3.

    Example:
        >>> canonical("../b/./%7ec?x=1&utm_id=2#top", "HTTP://Example.org:80/a/", ["utm_*"])
        'http://example.org/b/~c?x=1'
        >>> canonical("http://user@example.org/"), canonical("mailto:me@example.org"), canonical("http://[::1")
        (None, None, None)
    """
    try:
        parts = urlsplit(urljoin(base, reference.strip()))
        if parts.scheme not in DEFAULT_PORTS or "@" in parts.netloc or not (host := _host(parts.hostname or "")):
            return None
        port = f":{parts.port}" if parts.port not in (None, DEFAULT_PORTS[parts.scheme]) else ""
        path = _without_dots(_escaped(parts.path, "/:@!$&'()*+,;=") or "/")
        query = _kept(_escaped(parts.query, "/?:@!$&'()*+,;="), drop_parameters)
    except ValueError:
        return None
    url = urlunsplit((parts.scheme, host + port, path, query, ""))
    return url if len(url) <= MAX_CHARACTERS else None


def hostname(url: str) -> str:
    """The host of a canonical URL, without its port."""
    return urlsplit(url).hostname or ""


def origin(url: str) -> str:
    """Scheme, host and port of a canonical URL: what one robots.txt is for."""
    return url[: url.index("/", url.index("//") + 2)]


@dataclass(frozen=True)
class Scope:
    """Which URLs the recipe wants."""

    hosts: tuple[str, ...]
    include: tuple[re.Pattern[str], ...]
    exclude: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, source: CrawlSource) -> Scope:
        begin = filter(None, map(canonical, (*source.seeds, *source.sitemaps)))
        hosts = tuple(host.lower() for host in source.hosts) or tuple(sorted({urlsplit(url).netloc for url in begin}))
        return cls(hosts, tuple(map(re.compile, source.include)), tuple(map(re.compile, source.exclude)))

    def on_hosts(self, url: str) -> bool:
        """Whether the crawl stays where it may be; a port that is not the scheme's belongs to the host."""
        return any(fnmatchcase(urlsplit(url).netloc, host) for host in self.hosts)

    def __contains__(self, url: str) -> bool:
        included = not self.include or any(pattern.search(url) for pattern in self.include)
        return included and self.on_hosts(url) and not any(pattern.search(url) for pattern in self.exclude)


def _host(name: str) -> str:
    """A host as it is looked up, an IPv6 address in brackets; empty if it can be none.

    Raises: ValueError if it is no address and no name.
    """
    if ":" in name:
        return f"[{IPv6Address(name).compressed}]" if "%" not in name else ""
    ascii_name = (name if name.isascii() else name.encode("idna").decode()).lower().removesuffix(".")
    labels_fit = all(0 < len(label) <= MAX_LABEL_CHARACTERS for label in ascii_name.split("."))
    return ascii_name if _name.fullmatch(ascii_name) and labels_fit and len(ascii_name) <= MAX_NAME_CHARACTERS else ""


def _escaped(text: str, safe: str) -> str:
    """Percent-encoding where it is needed, and only there, in capitals."""
    if _plain.fullmatch(text):
        return text
    quoted = quote(_stray_percent.sub("%25", text), safe=safe + "%")
    return _escape.sub(_unescaped, quoted)


def _unescaped(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in UNRESERVED else escape[0].upper()


def _without_dots(path: str) -> str:
    """Source: RFC 3986, section 5.2.4."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            kept[-1:] = []
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _kept(query: str, drop_parameters: Sequence[str]) -> str:
    if not drop_parameters:
        return query
    parameters = query.split("&")
    return "&".join(each for each in parameters if not any(fnmatchcase(each.partition("=")[0], drop) for drop in drop_parameters))
