"""Where a text names a person or a machine: addresses of mail, phone numbers, addresses on the internet.

Each finder takes time linear in the text: it looks for something cheap and rare, then at the bounded neighbourhood of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

Span = tuple[int, int]

LOCAL_CHARACTERS = 64
IMAGES = {"png", "jpg", "jpeg", "gif", "svg", "webp", "ico"}  # icon@2x.png

_local = re.compile(r"""(?:[\w+][\w.+%!#$^~-]{0,63}|"[^"\\\s@][^"\\\n@]{0,61}")\Z""")
_host = re.compile(
    r"(?:[^\W_][\w-]{0,62}+\.){1,10}(?P<top>xn--[\w-]{2,59}|[^\W\d_]{2,63}+(?!(?<=utf|UTF|iso|ISO)-[0-9]))"
    r"|\[(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|IPv6:[0-9A-Fa-f:.]{2,45})\]"
)


def emails(text: str) -> Iterator[Span]:
    """Addresses of mail, in any script, with quoted names and address literals; not `git@host:path`.

    What follows the last letter of a host is never a reason to leave an address: `_jo@example.org_`. sd_IN@devanagari.UTF-8 is none.

    Source: RFC 5321, section 4.1.2; RFC 6531 for other scripts. Characters that rather delimit an address are no part of it.
    """
    for at in places(text, "@"):
        host = _host.match(text, at + 1)
        local = _local.search(text[max(0, at - LOCAL_CHARACTERS) : at]) if host else None
        if host and local and host["top"] not in IMAGES and not (local[0] == "git" and text.startswith(":", host.end())):
            yield at - len(local[0]), host.end()


_international = re.compile(r"\+(?<![\w+.]\+)[1-9](?:[ ./()-]{0,3}+[0-9]){7,14}(?![\w%]|[.,][0-9])")
_signed_decimal = re.compile(r"\+[0-9]+\.[0-9]+")
_american = re.compile(r"[2-9](?<![\w.$+-][2-9])[0-9]{2}(?:\) ?|([.-]))[2-9][0-9]{2}(?(1)\1|[ .-])[0-9]{4}(?![\w-]|\.[0-9])")
_trunk = re.compile(r"0(?<![\w.,+-]0)[1-9][0-9]{0,4}\)?(?:[ /.-]{1,3}+[0-9]{2,8}){1,4}(?![\w]|[.,-][0-9])")
_announced = re.compile(r"(?:tel|phone|fax|mobile?|cell|call|☎|📞)[\w.]{0,8}[\s:=(]{0,4}\Z", re.IGNORECASE)


def phones(text: str) -> Iterator[Span]:
    """International numbers, North American ones, and others with a leading 0 that a word such as `Tel.` announces.

    Source: ITU-T E.164 (at most 15 digits), E.123 for how they are written; the North American Numbering Plan's NXX-NXX-XXXX.
    """
    for found in _international.finditer(text):
        if not _signed_decimal.fullmatch(found[0]):
            yield found.span()
    for found in _american.finditer(text):
        parenthesised = found[1] is None
        if not parenthesised or text.startswith("(", max(0, found.start() - 1)):
            yield found.start() - parenthesised, found.end()
    for found in _trunk.finditer(text):
        if 9 <= sum(map(str.isdigit, found[0])) <= 12 and _announced.search(text[max(0, found.start() - 16) : found.start()]):
            yield found.span()


_dotted = re.compile(r"[0-9](?<![\w.+-][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.\w)")
_hextets = re.compile(r"[23](?<![\w:.][23])[0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){2,7}+(?![\w:]|\.[0-9])")
_version = re.compile(r"(?:version|release|ver|section|build|[=<>~]=|§)[\w\s.:\"'({]{0,4}\Z", re.IGNORECASE)


def addresses(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses of the public internet; private, loopback and documentation ranges name nobody.

    Source: the IANA special-purpose registries as in `ipaddress`; global unicast IPv6 is 2000::/3, RFC 4291, section 2.4.
    """
    for found in _dotted.finditer(text):
        if _is_public(found[0]) and not _version.search(text[max(0, found.start() - 16) : found.start()]):
            yield found.span()
    yield from (found.span() for found in _hextets.finditer(text) if _is_public(found[0]))


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def places(text: str, literal: str) -> Iterator[int]:
    """Where the literal stands in the text, however it overlaps."""
    place = text.find(literal)
    while place >= 0:
        yield place
        place = text.find(literal, place + 1)
