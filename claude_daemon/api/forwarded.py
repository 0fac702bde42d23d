"""Who asks, where proxies of the operator's stand before us.

``X-Forwarded-For`` is a list that each proxy adds its own peer to. It says what its writers say: so it is read from the
right, and only as far as those who wrote it are trusted. What anybody else writes there is not looked at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

HEADER: Final = "X-Forwarded-For"
MAX_HOPS: Final = 16
"""Proxies that are looked through: more is a loop."""

Network = IPv4Network | IPv6Network


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def client_of(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address nearest to us that no trusted proxy has. ``forwarded``: the header's values, in order."""
    address = _address(peer)
    if address is None or not trusts(address, trusted):
        return peer
    hops = [hop.strip() for value in forwarded for hop in value.split(",")]
    for hop in reversed(hops[-MAX_HOPS:]):
        found = _address(hop)
        if found is None:
            break
        address = found
        if not trusts(address, trusted):
            break
    return str(address)


def trusts(address: IPv4Address | IPv6Address, trusted: Sequence[Network]) -> bool:
    return any(address in network for network in trusted)


def is_proxy(peer: str, trusted: Sequence[Network]) -> bool:
    address = _address(peer)
    return address is not None and trusts(address, trusted)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Some proxies add a port, and brackets for it."""
    bare = text.partition("%")[0]
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
