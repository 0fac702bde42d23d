"""sd_notify against a real datagram socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_daemon.supervise.notify import MAX_STATUS_CHARS, Notifier

PID = 4711


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """systemd's end, and how NOTIFY_SOCKET names it."""
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        abstract = request.param == "abstract"
        sock.bind(f"\0{name}" if abstract else name)
        yield sock, f"@{name}" if abstract else name


def notifier(address: str, **environ: str) -> Notifier:
    return Notifier.of({"NOTIFY_SOCKET": address, **environ}, pid=PID, monotonic=lambda: 12.5)


def test_each_word_is_one_datagram(systemd: tuple[socket.socket, str]) -> None:
    sock, address = systemd
    told = notifier(address, WATCHDOG_USEC="3000000")
    told.ready("ready: 0 running")
    told.status("busy")
    told.reloading("reloading")
    told.stopping("draining")
    told.extend(1.5)
    told.watchdog()
    told.close()
    assert [sock.recv(4096).decode() for _ in range(6)] == [
        "READY=1\nSTATUS=ready: 0 running",
        "STATUS=busy",
        "RELOADING=1\nMONOTONIC_USEC=12500000\nSTATUS=reloading",
        "STOPPING=1\nSTATUS=draining",
        "EXTEND_TIMEOUT_USEC=1500000",
        "WATCHDOG=1",
    ]


def test_a_status_is_one_bounded_line_whatever_it_holds(systemd: tuple[socket.socket, str]) -> None:
    sock, address = systemd
    told = notifier(address)
    told.status("one\nREADY=1\r\ntwo\x00")
    told.status("x" * 10_000)
    told.status("half a pair: \ud800")
    told.close()
    assert sock.recv(4096) == b"STATUS=one READY=1 two "
    assert len(sock.recv(20_000)) == len("STATUS=") + MAX_STATUS_CHARS
    assert sock.recv(4096) == b"STATUS=half a pair: ?"


@pytest.mark.parametrize(
    ("environ", "period"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_only_where_it_asks_this_process(
    systemd: tuple[socket.socket, str], environ: dict[str, str], period: float | None
) -> None:
    sock, address = systemd
    told = notifier(address, **environ)
    assert told.watchdog_seconds == period
    told.watchdog()
    told.status("last")
    told.close()
    assert sock.recv(4096) == (b"WATCHDOG=1" if period else b"STATUS=last")


def test_without_systemd_it_is_silent() -> None:
    told = Notifier.of({"WATCHDOG_USEC": "30000000"}, pid=PID, monotonic=lambda: 0.0)
    assert (told.active, told.watchdog_seconds) == (False, None)
    told.ready("ready")
    told.watchdog()
    told.close()


def test_a_systemd_that_is_gone_or_reads_nothing_costs_nothing(systemd: tuple[socket.socket, str]) -> None:
    sock, address = systemd
    told = notifier(address)
    for _ in range(10_000):  # more than any receive buffer holds
        told.status("x" * MAX_STATUS_CHARS)
    sock.close()
    told.ready("ready")
    told.close()
    told.ready("ready")
    assert not told.active
