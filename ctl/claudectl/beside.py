"""Threads beside the main one, which alone is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


def beside(name: str, work: Callable[[], None]) -> None:
    """Does ``work`` in a thread of its own, for which the program does not wait at its end.

    It takes no signals: one that the kernel gave to it would not wake the main thread, whose handlers they are for.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a thread begins with its maker's
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
