"""Where a crawl may connect to: public addresses, checked at the moment of the connection.

A page can name any host, and a name can resolve to any address: of this machine, of its network, of a cloud's
metadata service. So each name is resolved once, every address that it has is checked, and the connection goes to a
checked address instead of the name. What the name resolves to a moment later changes nothing. The request and TLS
still carry the name. Redirects are requests of their own and pass here again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

import httpcore

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[list[str]]]


def _networks(*names: str) -> list[Network]:
    return [ipaddress.ip_network(name) for name in names]


IPV6_PUBLIC = ipaddress.ip_network("2000::/3")
NOT_PUBLIC = _networks(
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
    *("192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    "168.63.129.16/32",  # Azure's metadata and DNS, inside a public range
    *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo and other protocols, documentation, 6to4, documentation
)


class RefusedAddress(ConnectionError):
    """A host has an address that nobody outside its network should be sent to."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the whole internet reaches this address.

    Of IPv6 only global unicast is, less what carries other addresses inside (mapped, NAT64, 6to4, Teredo).

    Source: IANA special-purpose address registries (RFC 6890), multicast and reserved space (RFC 1112, RFC 4291).
    """
    if address.version == 6 and address not in IPV6_PUBLIC:
        return False
    return not any(address in network for network in NOT_PUBLIC)


async def resolved(host: str, port: int) -> list[str]:
    """Addresses of a host as the system resolves it, odd spellings such as 0x7f.1 included."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connections for httpcore, to checked addresses only."""

    def __init__(self, allowed: Sequence[str] = (), *, resolve: Resolve = resolved, network: httpcore.AsyncNetworkBackend | None = None):
        self._allowed = _networks(*allowed)
        self._resolve = resolve
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of the host that answers.

        Raises: RefusedAddress if any address of the host is not public or it can't be a host; httpcore.ConnectError if none answers.
        """
        try:
            addresses = [ipaddress.ip_address(address) for address in await self._resolve(host, port)]
        except UnicodeError as failure:  # the codec for names that the look-up applies refuses empty and long labels
            raise RefusedAddress(f"{host[:300]} is no name of a host") from failure
        refused = [address for address in addresses if not is_public(address) and not self._is_allowed(address)]
        if refused:
            raise RefusedAddress(f"{host} is {refused[0]}")
        error = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except httpcore.ConnectError as failure:
                error = failure
        raise error

    async def sleep(self, seconds: float) -> None:
        """A pause of httpcore's."""
        await asyncio.sleep(seconds)

    def _is_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._allowed)
