"""Logs: one pipeline for our own events and for everything that uses the standard library's ``logging``.

:func:`configure` is called once, by the composition root; modules hold ``log = get_logger(__name__)`` and
call ``log.info("worker.started", pid=…)``. What ``structlog.contextvars`` has bound (``request_id``,
``task_id``, ``worker_id``, ``key_id``, ``lane``) stands on every line. The rules:

- one event is one line, whatever it carries: control characters are escaped, sizes bounded
- secrets are masked by the name of their field, by their look, and by the values known to be secret
- nobody waits for a reader: a line that stderr does not take at once is lost
- nothing raises into the caller: a line that cannot be rendered or written is counted in ``LogHandle.lost``

Levels are those of the standard library's logger of the same name, so a module's level covers its children.
Before :func:`configure` events go nowhere; ``structlog.testing.capture_logs`` works before and after.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

import structlog
from structlog.contextvars import merge_contextvars

from claude_daemon.config import Level, Log
from claude_daemon.secret import Secret
from claude_daemon.telemetry.masking import Masker, exception_fields, exception_of, said
from claude_daemon.telemetry.rendering import Event, console_renderer, render_json
from claude_daemon.telemetry.sink import Sink, open_log

MAX_LINE_BYTES = 64 * 1024
"""Journald cuts at 48 KiB by default and most shippers at 64; beyond it only the head of a line is kept."""

_HEAD = frozenset({"ts", "level", "event", "logger"})


class Logger(structlog.BoundLoggerBase):
    """Emits events with fields. A call below the level costs one look-up; none ever raises."""

    _logger: logging.Logger

    def debug(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._emit("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.INFO):
            self._emit("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.WARNING):
            self._emit("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.ERROR):
            self._emit("error", event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error with the exception being handled, or with ``exc_info``."""
        self.error(event, **{"exc_info": True, **fields})

    def critical(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.CRITICAL):
            self._emit("critical", event, fields)

    def _emit(self, level: str, event: str, fields: dict[str, object]) -> None:
        if not _HEAD.isdisjoint(fields):
            fields = {f"{name}_" if name in _HEAD else name: value for name, value in fields.items()}
        line: Any = {**self._context, **fields, "event": event, "logger": self._logger.name}
        try:
            for processor in self._processors:
                line = processor(self._logger, level, line)
        except structlog.DropEvent:
            pass


def get_logger(name: str) -> Logger:
    """The logger of a module; may be made before :func:`configure`, and follows it."""
    return Logger(logging.getLogger(name), _chain(), {})


def _chain() -> list[Any]:
    """structlog's own list of processors: the loggers share it, so changing its content changes them all."""
    chain: list[Any] = structlog.get_config()["processors"]
    return chain


class Pipeline:
    """From an event's fields to a written line; as a structlog processor it is the last one."""

    def __init__(self, render: Callable[[Event], bytes], sinks: Iterable[Sink], clock: Callable[[], float]) -> None:
        self.masker = Masker()
        self.unrendered = 0
        self._render = render
        self._sinks = tuple(sinks)
        self._clock = clock
        self._second = (-1, "")

    def __call__(self, logger: object, level: str, fields: Event) -> NoReturn:
        self.emit(level, fields)
        raise structlog.DropEvent

    def emit(self, level: str, fields: Event) -> None:
        """Writes one line; ``fields`` has ``event`` and ``logger``. Never raises."""
        try:
            line = self._line(level, fields)
            rendered = self._render(line)
            if len(rendered) > MAX_LINE_BYTES:
                head = {name: value for name, value in line.items() if name in _HEAD}
                rendered = self._render({**head, "cut_bytes": len(rendered)})
        except Exception:
            self.unrendered += 1
            return
        for sink in self._sinks:
            sink.write(rendered)

    def _line(self, level: str, fields: Event) -> Event:
        merge_contextvars(None, level, fields)
        text, field = self.masker.text, self.masker.field
        line = {
            "ts": self._now(),
            "level": level,
            "event": text(str(fields.pop("event"))),
            "logger": text(fields.pop("logger")),
        }
        if (error := exception_of(fields.pop("exc_info", None))) is not None:
            fields["exception"] = exception_fields(error)
        for name, value in fields.items():
            line.setdefault(name, field(name, value))
        return line

    def _now(self) -> str:
        """RFC 3339 in UTC with milliseconds; the part down to the second is made once a second."""
        now = self._clock()
        second = int(now)
        if self._second[0] != second:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{int((now - second) * 1000):03d}Z"


class Bridge(logging.Handler):
    """The standard library's root handler: its records go the same way."""

    def __init__(self, pipeline: Pipeline, undo: Callable[[], None]) -> None:
        super().__init__()
        self._pipeline = pipeline
        self.undo = undo

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except Exception:  # arguments that do not fit the message
            event = said(record.msg)
        fields: Event = {"event": event, "logger": record.name, "exc_info": record.exc_info}
        self._pipeline.emit(record.levelname.lower(), fields)


class LogHandle:
    """What the composition root holds: levels, rotation, losses."""

    def __init__(self, pipeline: Pipeline, sinks: tuple[Sink, ...], path: Path | None) -> None:
        self._pipeline = pipeline
        self._sinks = sinks
        self._path = path
        self._bridge = Bridge(pipeline, self.close)
        self._levels: dict[str, Level] = {}

    @property
    def lost(self) -> int:
        """Lines that could not be rendered, and those that one of the outputs did not take."""
        return self._pipeline.unrendered + sum(sink.lost for sink in self._sinks)

    @property
    def levels(self) -> dict[str, Level]:
        """The levels set here, by logger name; "" is every other logger's."""
        return dict(self._levels)

    def apply(self, settings: Log, secrets: Iterable[Secret] = ()) -> None:
        """Takes levels and known secrets from a reloaded configuration; levels set by hand are forgotten.

        Format and file stay as they were configured.
        """
        for name in set(self._levels) - set(settings.levels):
            self.set_level(None, name)
        for name, level in {"": settings.level, **settings.levels}.items():
            self.set_level(level, name)
        self._pipeline.masker = Masker(secrets)

    def mask(self, secrets: Iterable[Secret]) -> None:
        """Knows these secrets from now on."""
        self._pipeline.masker = Masker(secrets)

    def set_level(self, level: Level | None, logger: str = "") -> None:
        """Sets the level of a logger and its children, at once; None gives it back to its parent.

        Raises ValueError for a name that is no level.
        """
        if level is not None and level not in get_args(Level):
            raise ValueError(f"no such level: {level!r}")
        logging.getLogger(logger).setLevel(level.upper() if level else _UNSET[logger == ""])
        if level:
            self._levels[logger] = level
        else:
            self._levels.pop(logger, None)

    def reopen(self) -> bool:
        """Opens the file anew, after a rotation. False where that fails: the old one is still written to."""
        if self._path is None:
            return True
        try:
            fd = open_log(self._path)
        except OSError as error:
            get_logger(__name__).error("log.reopen_failed", path=self._path, reason=error.strerror)
            return False
        self._sinks[-1].replace(fd)
        return True

    def close(self) -> None:
        """Undoes :func:`configure`: events go nowhere again. Idempotent."""
        chain = _chain()
        if self._pipeline in chain:
            chain[:] = [_drop]
            logging.captureWarnings(False)
            logging.getLogger().removeHandler(self._bridge)
            for name in list(self._levels):
                self.set_level(None, name)
        if self._path is not None:
            self._sinks[-1].close()

    def install(self) -> None:
        """Makes this the way of all events of the process; a former handle gives way to it."""
        chain, root = _chain(), logging.getLogger()
        for former in [handler for handler in root.handlers if isinstance(handler, Bridge)]:
            former.undo()
        chain[:] = [self._pipeline]
        structlog.configure(processors=chain, wrapper_class=Logger, logger_factory=logging.getLogger)
        root.addHandler(self._bridge)
        logging.captureWarnings(True)


_UNSET = {True: logging.WARNING, False: logging.NOTSET}
"""The level of a logger that nobody set: the root's, the others'."""


def _drop(logger: object, level: str, fields: Event) -> NoReturn:
    raise structlog.DropEvent


def configure(
    settings: Log,
    *,
    stream: TextIO,
    path: Path | None,
    secrets: Iterable[Secret] = (),
    clock: Callable[[], float] = time.time,
) -> LogHandle:
    """Sends all events to ``stream``, and to the file at ``path`` unless it is None.

    ``secrets`` are masked wherever they appear. ``clock`` gives the Unix time in seconds. The file's
    directory must exist. A configuration before this one is closed. Raises OSError where the file cannot be
    opened.
    """
    colors = settings.format == "console" and stream.isatty()
    render = console_renderer(colors=colors) if settings.format == "console" else render_json
    sinks = (Sink.of(stream),) if path is None else (Sink.of(stream), Sink(open_log(path), uncoloured=colors))
    handle = LogHandle(Pipeline(render, sinks, clock), sinks, path)
    handle.install()
    handle.apply(settings, secrets)
    return handle
