"""Where a webhook may go, judged by its URL and by the addresses of its host (pure).

A receiver is named by a client, and we are inside: whatever reaches only us must not be reached through us. So an
address is refused unless it is known to be public, or private and ``webhooks.allow_private`` is on. That switch opens
the networks that people number themselves, loopback among them. It does not open what is never a receiver: link-local
addresses and the other places where clouds hand out credentials, multicast, unspecified and reserved ones.

What cannot be told from an address: a network's own NAT64 prefix, and a public address that leads back inside. Those
are for the firewall.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from yarl import URL

Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(ip_network(text) for text in texts)


_PRIVATE: Final = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",  # carriers' shared space, and what overlay networks like to number with
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
)
_METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure's platform: a public address that is answered by the host
        "169.254.169.254",  # nearly everyone
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
)
# is_global differs between the Python versions that we run on; these are not public in any.
_NOT_PUBLIC: Final = _networks(
    "192.0.0.0/24",  # protocol assignments
    "192.88.99.0/24",  # 6to4 relays
    "2001::/23",  # protocol assignments: Teredo, which wraps an IPv4 address, ORCHID
    "2002::/16",  # 6to4, which wraps an IPv4 address and is deprecated
    "3fff::/20",  # documentation
)
_GLOBAL_UNICAST: Final = ip_network("2000::/3")
"""All public IPv6 there is (IANA); outside of it lie further ways to wrap an IPv4 address."""
_NAT64: Final = ip_network("64:ff9b::/96")

# Looser than DNS (underscores happen), narrow enough that only the resolver has anything to read into it.
_NAME: Final = re.compile(r"(?=.{1,253}\.?$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.ASCII | re.IGNORECASE)
# A host whose last label looks like this is an IPv4 address to some parser, if not to ours (WHATWG URL).
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)
_BLANK_OR_CONTROL: Final = re.compile(r"[\x00-\x20\x7f-\xa0\s]")


class ReceiverRefused(Exception):
    """Nothing is sent there; ``str()`` says why: of a URL what it must not be, of an address what it is."""


def check_url(url: str, allow_private: bool) -> str | None:
    """Why nothing may be sent to this URL, as far as it tells itself (names are not resolved); None: nothing."""
    try:
        receiver(url, allow_private=allow_private)
    except ReceiverRefused as refused:
        return str(refused)
    return None


def receiver(url: str, *, allow_private: bool) -> URL:
    """The URL as it will be asked for: what is judged here is what is connected to. Raises ReceiverRefused."""
    if _BLANK_OR_CONTROL.search(url):
        raise ReceiverRefused("must not hold blanks or control characters")
    try:
        parsed = URL(url)
    except ValueError:
        raise ReceiverRefused("is not a URL") from None
    if parsed.scheme not in ("http", "https"):
        raise ReceiverRefused("must begin with http:// or https://")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise ReceiverRefused("must not hold a user or a password")
    if parsed.port == 0:
        raise ReceiverRefused("must not name port 0")
    _check_host(parsed.raw_host or "", allow_private=allow_private)
    return parsed


def checked(text: str, *, allow_private: bool) -> Address:
    """One address that a name has resolved to. Raises ReceiverRefused."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ReceiverRefused("its host resolves to what is no address") from None
    if why := why_not(address, allow_private=allow_private):
        raise ReceiverRefused(f"{address} {why}")
    return address


def why_not(address: Address, *, allow_private: bool) -> str | None:
    """Why nothing is sent to this address; None if it may be.

    An address that wraps an IPv4 one is refused, but for two: an IPv4-mapped one *is* that IPv4 address, and a NAT64
    one leads to it (from a network without IPv4), which must be public then (RFC 6052).
    """
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "has a zone"
        if address.ipv4_mapped is not None:
            return why_not(address.ipv4_mapped, allow_private=allow_private)
        if address in _NAT64:
            return why_not(IPv4Address(int(address) & 0xFFFF_FFFF), allow_private=False)
    if address in _METADATA:
        return "is where a cloud keeps credentials"
    if _in(address, _PRIVATE):
        return None if allow_private else "is a private address, and webhooks.allow_private is off"
    return None if _is_public(address) else "is not a public address"


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not _in(address, _NOT_PUBLIC)


def _in(address: Address, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)


def _check_host(host: str, *, allow_private: bool) -> None:
    """An address is judged at once; a name only for its form, and for being ours by definition (RFC 6761)."""
    if not host:
        raise ReceiverRefused("must name a host")
    if ":" in host:
        checked(host, allow_private=allow_private)
        return
    if not _NAME.fullmatch(host):
        raise ReceiverRefused("must name a host by its DNS name or address")
    labels = host.rstrip(".").lower().split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            IPv4Address(host)
        except ValueError:
            raise ReceiverRefused("must write an IPv4 address as four decimal numbers") from None
        checked(host, allow_private=allow_private)
    elif labels[-1] == "localhost" and not allow_private:
        raise ReceiverRefused("localhost is a private address, and webhooks.allow_private is off")
