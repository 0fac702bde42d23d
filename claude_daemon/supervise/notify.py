"""``sd_notify``: what a service tells systemd, in datagrams (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from typing import Final

from claude_daemon.ports import Clock

MAX_STATUS_CHARS: Final = 200
"""``systemctl status`` shows one line."""
_MICRO: Final = 1_000_000
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Notifier:
    """Silent where nobody listens. Never raises and never waits: what systemd does not take at once is lost, and the
    next word of its kind comes soon."""

    def __init__(self, address: str | None, *, watchdog_seconds: float | None, monotonic: Clock) -> None:
        self.watchdog_seconds = watchdog_seconds
        """systemd ends a service from which it has heard no :meth:`watchdog` for so long; None: it does not ask."""
        self._monotonic = monotonic
        self._address = address
        self._socket: socket.socket | None = None
        if address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def of(cls, environ: Mapping[str, str], *, pid: int, monotonic: Clock) -> Notifier:
        """As ``NOTIFY_SOCKET`` (a path, or an abstract name behind ``@``) and the two ``WATCHDOG_…`` variables say."""
        given = environ.get("NOTIFY_SOCKET", "")
        address = f"\0{given[1:]}" if given.startswith("@") else given
        asked = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        period = int(asked) / _MICRO if ours and asked.isascii() and asked.isdigit() and int(asked) > 0 else None
        return cls(address or None, watchdog_seconds=period if address else None, monotonic=monotonic)

    @property
    def active(self) -> bool:
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        self._send(_status(status))

    def reloading(self, status: str) -> None:
        """A reload begins, now; it ends with :meth:`ready`. systemd wants both words in one datagram."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(self._monotonic() * _MICRO)}", _status(status))

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """Asks for so much time from now on, for a start or a stop that gets on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * _MICRO)}")

    def watchdog(self) -> None:
        """The loop turns. Only where it is asked for."""
        if self.watchdog_seconds is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *words: str) -> None:
        if self._socket is not None and self._address is not None:
            datagram = "\n".join(words).encode(errors="replace")
            with contextlib.suppress(OSError):
                self._socket.sendto(datagram, socket.MSG_NOSIGNAL, os.fsencode(self._address))


def _status(text: str) -> str:
    return f"STATUS={_UNPRINTABLE.sub(' ', text)[:MAX_STATUS_CHARS]}"
