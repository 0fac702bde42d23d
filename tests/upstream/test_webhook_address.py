"""Where a webhook may go."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.upstream.address import ReceiverRefused, check_url, checked, why_not
from claude_daemon.upstream.webhook import checked_socket

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2a00::1"]
PRIVATE = [
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "::1",
    "fd12:3456::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
]
NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::7f00:1",
    "::ffff:0.0.0.0",
    "::ffff:169.254.169.254",
    "::ffff:224.0.0.1",
    "::ffff:0:7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", PUBLIC)
@pytest.mark.parametrize("allow_private", [True, False])
def test_a_public_address_is_always_allowed(text: str, allow_private: bool) -> None:
    assert why_not(ip_address(text), allow_private=allow_private) is None


@pytest.mark.parametrize("text", PRIVATE)
def test_a_private_address_is_allowed_only_where_private_ones_are(text: str) -> None:
    assert why_not(ip_address(text), allow_private=True) is None
    why = why_not(ip_address(text), allow_private=False)
    assert why is not None and "webhooks.allow_private" in why


@pytest.mark.parametrize("text", NEVER)
@pytest.mark.parametrize("allow_private", [True, False])
def test_what_is_no_receiver_is_refused_even_where_private_addresses_are_allowed(
    text: str, allow_private: bool
) -> None:
    assert why_not(ip_address(text), allow_private=allow_private) is not None


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_no_wrapping_makes_a_refused_ipv4_address_an_allowed_one(number: int, other: int) -> None:
    inner = IPv4Address(number)
    if why_not(inner, allow_private=False) is None:
        return
    wrapped = [
        number,  # IPv4-compatible
        0xFFFF << 32 | number,  # IPv4-mapped
        0xFFFF << 48 | number,  # IPv4-translated
        0x64_FF9B << 96 | number,  # NAT64
        0x64_FF9B_0001 << 80 | number,  # NAT64, a network's own
        0x2002 << 112 | number << 80 | other,  # 6to4
        0x2001_0000 << 96 | other << 32 | number ^ 0xFFFF_FFFF,  # Teredo, the client
        0x2001_0000 << 96 | number << 64 | other,  # Teredo, the server
    ]
    for address in map(IPv6Address, wrapped):
        assert why_not(address, allow_private=False) is not None, address


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_is_allowed_without_private_ones_is_allowed_with_them(address: IPv4Address | IPv6Address) -> None:
    if why_not(address, allow_private=False) is None:
        assert why_not(address, allow_private=True) is None


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f.0.0.1", "010.0.0.1", "1.2.3.4 ", "2130706433"])
def test_what_is_no_address_is_none_to_connect_to(text: str) -> None:
    with pytest.raises(ReceiverRefused, match="no address"):
        checked(text, allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?token=1#part",
        "http://example.com:1/",
        "HTTPS://Example.COM./",
        "http://under_score.example",
        "http://8.8.8.8:8080/x",
        "http://[2606:4700::1111]:8080/",
        "https://bücher.example/",
        "http://0x7f.example/",
        "http://4.example/",
        "http://receiver/",
    ],
)
def test_a_url_of_a_public_receiver_has_nothing_against_it(url: str) -> None:
    assert check_url(url, allow_private=False) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin with http"),
        ("example.com/hook", "must begin with http"),
        ("//example.com/hook", "must begin with http"),
        ("ftp://example.com/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("javascript:alert(1)", "must begin with http"),
        ("http:", "must name a host"),
        ("http:example.com", "must name a host"),
        ("http:///hook", "must name a host"),
        ("http://user:password@example.com/", "user or a password"),
        ("http://user@example.com/", "user or a password"),
        ("http://:password@example.com/", "user or a password"),
        ("http://example.com:0/", "port 0"),
        ("http://example.com:99999/", "is not a URL"),
        ("http://example.com:port/", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://example.com\\@127.0.0.1/", "is not a URL"),
        ("http://example.com/a b", "blanks or control characters"),
        ("http://example.com/\r\nHost: other", "blanks or control characters"),
        ("http://exam\tple.com/", "blanks or control characters"),
        (" http://example.com/", "blanks or control characters"),
        ("http://a..b/", "DNS name or address"),
        ("http://..", "DNS name or address"),
        ("http://%31%32%37.0.0.1/", "DNS name or address"),
        (f"http://{'a' * 64}.example/", "DNS name or address"),
        (f"http://{'a.' * 127}example/", "DNS name or address"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://0x7f.1/", "four decimal numbers"),
        ("http://0x7f000001/", "four decimal numbers"),
        ("http://0X/", "four decimal numbers"),
        ("http://127.1/", "four decimal numbers"),
        ("http://0177.0.0.1/", "four decimal numbers"),
        ("http://127.0.0.1./", "four decimal numbers"),
        ("http://1.2.3.4.5/", "four decimal numbers"),
        ("http://256.1.1.1/", "four decimal numbers"),
        ("http://example.0x7f/", "four decimal numbers"),
        ("http://127.0.0.1/", "127.0.0.1 is a private address"),
        ("http://①②⑦.⓪.⓪.①/", "127.0.0.1 is a private address"),
        ("http://127。0。0。1/", "127.0.0.1 is a private address"),
        ("http://[::1]/", "::1 is a private address"),
        ("http://[::ffff:127.0.0.1]/", "is a private address"),
        ("http://[::ffff:7f00:1]/", "is a private address"),
        ("http://[::127.0.0.1]/", "is not a public address"),
        ("http://[fe80::1%25eth0]/", "has a zone"),
        ("http://169.254.169.254/latest/meta-data/", "keeps credentials"),
        ("http://0.0.0.0/", "is not a public address"),
        ("http://localhost/", "localhost is a private address"),
        ("http://LOCALHOST./", "localhost is a private address"),
        ("http://any.localhost/", "localhost is a private address"),
    ],
)
def test_a_url_says_what_is_wrong_with_it(url: str, why: str) -> None:
    said = check_url(url, allow_private=False)
    assert said is not None and why in said


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/", "http://[::1]/", "http://localhost/", "http://10.0.0.1/"])
def test_a_private_literal_is_fine_where_private_addresses_are_allowed(url: str) -> None:
    assert check_url(url, allow_private=True) is None


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "http://2130706433/", "http://[::ffff:169.254.169.254]/"])
def test_metadata_and_odd_literals_are_refused_even_there(url: str) -> None:
    assert check_url(url, allow_private=True) is not None


@given(st.text())
def test_any_text_is_judged_and_none_breaks_the_judge(text: str) -> None:
    check_url(text, allow_private=False)
    check_url("http://" + text, allow_private=False)


def test_no_socket_is_made_for_an_address_that_is_refused() -> None:
    """However aiohttp reads a URL's host, and whether or not it asks our resolver."""
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))
    with pytest.raises(ReceiverRefused):
        checked_socket(info, allow_private=False)
    checked_socket(info, allow_private=True).close()
