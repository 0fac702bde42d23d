"""Single keys from the terminal, without Return."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from claudectl.beside import beside


@contextmanager
def keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Tells each key while the block runs, in a thread of its own; nothing where stdin is no terminal.

    Ctrl-C stays what it is. The terminal is as it was afterwards.
    """
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read() -> None:
        while key := os.read(descriptor, 1):
            pressed(key.decode(errors="replace"))

    tty.setcbreak(descriptor)
    beside("keys", read)  # waits for a key to the very end
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
