"""From an event's fields to written lines, and what else ends up there: the standard library's ``logging``, warnings,
exceptions that nobody handled."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from typing import Any, Final, NoReturn

import structlog
from structlog.contextvars import STRUCTLOG_KEY_PREFIX

from claude_daemon.telemetry.floods import WINDOW_S, Floods
from claude_daemon.telemetry.masking import Masker, exception_fields, exception_of, said
from claude_daemon.telemetry.rendering import Event, escaped_json, render_json
from claude_daemon.telemetry.sink import Sink

MAX_LINE_BYTES = 64 * 1024
"""Journald cuts at 48 KiB by default and most shippers at 64; beyond it only the head of a line is kept."""

HEAD: Final = frozenset({"ts", "level", "event", "logger"})
ACCESS: Final = frozenset({"http.access", "control.access"})
"""Lines that are spared first where room is scarce."""
LIBRARY: Final = "library.log"
"""The event of what comes through the standard library; its text is in ``message``."""
UNCAUGHT: Final = "library.uncaught"
SAMPLED: Final = "log.sampled"
LOGGER: Final = "claude_daemon.log"
"""Whose lines are about the log itself."""

Render = Callable[[Event], bytes]
Output = tuple[Render, Sink]


class Pipeline:
    """From an event's fields to a written line; as a structlog processor it is the last one.

    ``clock``: Unix time in seconds; ``monotonic``: seconds, for floods.
    """

    def __init__(
        self, outputs: Iterable[Output], clock: Callable[[], float], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.masker = Masker()
        self.unrendered = 0
        self.floods = Floods()
        self._outputs = tuple(outputs)
        self._clock = clock
        self._monotonic = monotonic
        self._second = (-1, "")

    def __call__(self, logger: object, level: str, fields: Event) -> NoReturn:
        self.emit(level, fields)
        raise structlog.DropEvent

    def emit(self, level: str, fields: Event, kind: str | None = None) -> None:
        """Writes one line, unless it is one of too many; ``fields`` has ``event`` and ``logger``. Never raises.

        ``kind``: what it is counted as, if not by its event.
        """
        now = self._monotonic()
        try:
            if type(fields["event"]) is not str:
                fields["event"] = said(fields["event"])
            if self.floods.take(kind or fields["event"], level, now):
                _add_context(fields)
                self._write(level, fields)
            if self.floods.due(now):
                self.tell_floods(now)
        except Exception:
            self.unrendered += 1

    def tell_floods(self, now: float | None = None) -> None:
        """Tells how much was left out of floods that are over. None: of all, for nothing more comes."""
        for flood in self.floods.all_told() if now is None else self.floods.told(now):
            fields = {"event": SAMPLED, "logger": LOGGER, "of": flood.name, "dropped": flood.dropped}
            self._write("warning", {**fields, "within_seconds": WINDOW_S})

    def _write(self, level: str, fields: Event) -> None:
        if (error := exception_of(fields.pop("exc_info", None))) is not None:
            fields["exception"] = exception_fields(error)
        line: Event = {
            "ts": self._now(),
            "level": level,
            "event": fields["event"],
            "logger": fields["logger"],
            **fields,
        }
        access = line["event"] in ACCESS
        if (found := self.masker.plain(line)) is None:
            line = self.masker.masked(line)
        render, rendered = None, b""
        for wanted, sink in self._outputs:
            if wanted is not render:
                render = wanted
                rendered = escaped_json(found) if found and wanted is render_json else _rendered(wanted, line)
            sink.write(rendered, access=access)

    def _now(self) -> str:
        """RFC 3339 in UTC with microseconds: parts of a chat begin within one millisecond. What is down to the second
        is made once a second."""
        now = self._clock()
        second = int(now)
        if self._second[0] != second:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{int((now - second) * 1_000_000):06d}Z"


def _rendered(render: Render, line: Event) -> bytes:
    rendered = render({**line})  # which may take it apart
    if len(rendered) > MAX_LINE_BYTES:
        head = {name: value for name, value in line.items() if name in HEAD}
        rendered = render({**head, "cut_bytes": len(rendered)})
    return rendered


_PREFIX_CHARS: Final = len(STRUCTLOG_KEY_PREFIX)


def _add_context(fields: Event) -> None:
    """What structlog.contextvars has bound, as its merge_contextvars does, in half the time; fields win over it."""
    for variable, value in copy_context().items():
        name = variable.name
        if name.startswith(STRUCTLOG_KEY_PREFIX) and value is not Ellipsis:
            name = name[_PREFIX_CHARS:]
            if name not in fields and name not in HEAD:
                fields[name] = value


class Bridge(logging.Handler):
    """The standard library's root handler: its records go the same way."""

    def __init__(self, pipeline: Pipeline, undo: Callable[[], None]) -> None:
        super().__init__()
        self._pipeline = pipeline
        self.undo = undo

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit the message
            message = said(record.msg)
        fields: Event = {"event": LIBRARY, "logger": record.name, "message": message, "exc_info": record.exc_info}
        self._pipeline.emit(_level_of(record.levelno), fields, f"{LIBRARY} {record.name}")


def _level_of(number: int) -> str:
    """Libraries have levels of their own between ours."""
    for bound, name in _LEVELS:
        if number >= bound:
            return name
    return "debug"


_LEVELS: Final = (
    (logging.CRITICAL, "critical"),
    (logging.ERROR, "error"),
    (logging.WARNING, "warning"),
    (logging.INFO, "info"),
)


class Hooks:
    """What Python prints to stderr, as lines: exceptions that end a thread or the program, or come from a finaliser."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._former: tuple[Any, Any, Any] | None = None

    def install(self) -> None:
        self._former = (sys.excepthook, sys.unraisablehook, threading.excepthook)
        sys.excepthook = lambda kind, error, tb: self._tell("critical", error, "program")
        sys.unraisablehook = lambda args: self._tell("error", args.exc_value, said(args.object))
        threading.excepthook = lambda args: self._tell(
            "error", args.exc_value, args.thread.name if args.thread is not None else "thread"
        )

    def undo(self) -> None:
        if self._former is not None:
            sys.excepthook, sys.unraisablehook, threading.excepthook = self._former
            self._former = None

    def _tell(self, level: str, error: BaseException | None, where: str) -> None:
        if isinstance(error, SystemExit):
            return
        fields: Event = {"event": UNCAUGHT, "logger": LOGGER, "where": where, "exc_info": error}
        Context().run(self._pipeline.emit, level, fields)  # it happened in nobody's request
