"""One line on a terminal, rewritten until it is erased."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

# Often enough for a tenth of a second to be seen passing; what is over sooner shows no line at all.
TICK_SECONDS = 0.1
# A terminal that does not know its size says 0.
USUAL_COLUMNS = 80

_ERASE = "\r\x1b[2K"


class Progress:
    """Shows ``describe(elapsed_seconds)`` on stderr while the block runs, or until :meth:`erase`.

    Where stderr is not a terminal, or is a dumb one, nothing is written and no thread is started. After
    ``erase`` returns the line is gone and never comes back.
    """

    def __init__(self, describe: Callable[[float], str], *, wanted: bool = True) -> None:
        self._describe = describe
        self._terminal: TextIO = sys.stderr
        self._over = threading.Event()
        able = wanted and self._terminal.isatty() and os.environ.get("TERM") != "dumb"
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True) if able else None
        self._shown = False
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._ticker is not None:
            self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.erase()

    @property
    def shows(self) -> bool:
        """Whether there is a line, or will be at the next tick."""
        return self._ticker is not None

    def erase(self) -> None:
        """Ends the line; does nothing the second time."""
        if self._ticker is None:
            return
        self._over.set()
        self._ticker.join()
        self._ticker = None
        if self._shown:
            self._terminal.write(_ERASE)
            self._terminal.flush()

    def _tick(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            line = self._describe(time.monotonic() - self._began)
            self._shown = True
            self._terminal.write(_ERASE + line[: self._columns() - 1])
            self._terminal.flush()

    def _columns(self) -> int:
        return os.get_terminal_size(self._terminal.fileno()).columns or USUAL_COLUMNS
