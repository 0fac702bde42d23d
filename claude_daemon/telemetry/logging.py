"""Logs: one pipeline for our own events and for everything that uses the standard library's ``logging``.

:func:`configure` is called once, by the composition root; modules hold ``log = get_logger(__name__)`` and
call ``log.info("worker.started", pid=…)``. What ``structlog.contextvars`` has bound (``request_id``,
``task_id``, ``worker_id``, ``key_id``, ``lane``) stands on every line. The rules:

- one event is one line, whatever it carries: control characters are escaped, sizes bounded
- secrets are masked by the name of their field, by their look, and by the values known to be secret
- nobody waits for a reader: a line that stderr does not take at once is lost
- nothing raises into the caller: a line that cannot be rendered or written is counted in ``LogHandle.lost``
- a flood of one event is told in part (:mod:`~claude_daemon.telemetry.floods`), and how much was left out of it
- where a disk is full access lines are left out first (:mod:`~claude_daemon.telemetry.sink`)
- every line has an ``event`` of a closed set, listed in ``docs/logs.md``; what varies is in its fields

Levels are those of the standard library's logger of the same name, so a module's level covers its children.
Before :func:`configure` events go nowhere; ``structlog.testing.capture_logs`` works before and after.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO, get_args

import structlog

from claude_daemon.config import Level, Log
from claude_daemon.secret import Secret
from claude_daemon.telemetry.masking import Masker
from claude_daemon.telemetry.pipeline import HEAD, LOGGER, Bridge, Hooks, Pipeline
from claude_daemon.telemetry.rendering import Event, console_renderer, render_json
from claude_daemon.telemetry.sink import Sink, open_log

WATCH_S: Final = 1.0
"""How often it is looked whether room is scarce, and whether a flood is over."""
PROBE_S: Final = 30.0
"""How often a disk that says it has room, and takes nothing, is tried."""


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
        if not HEAD.isdisjoint(fields):
            fields = {f"{name}_" if name in HEAD else name: value for name, value in fields.items()}
        line: Any = {**self._context, **fields, "event": event, "logger": self._logger.name}
        chain: Any = self._processors
        if type(chain[0]) is Pipeline:  # always, but before :func:`configure` and in tests
            chain[0].emit(level, line)
            return
        try:
            for processor in chain:
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


class LogHandle:
    """What the composition root holds: levels, rotation, losses."""

    def __init__(self, pipeline: Pipeline, sinks: tuple[Sink, ...], path: Path | None, format: str) -> None:
        self.path = path
        self.format = format
        self._pipeline = pipeline
        self._sinks = sinks
        self._bridge = Bridge(pipeline, self.close)
        self._hooks = Hooks(pipeline)
        self._levels: dict[str, Level] = {}
        self._told: dict[Sink, float] = {}  # of scarce room, and when it is tried next

    @property
    def lost(self) -> int:
        """Lines that could not be rendered, and those that one of the outputs did not take."""
        return self._pipeline.unrendered + sum(sink.lost for sink in self._sinks)

    @property
    def spared(self) -> int:
        """Access lines that one of the outputs was not given, for want of room."""
        return sum(sink.spared for sink in self._sinks)

    @property
    def sampled(self) -> int:
        """Lines that were left out of floods."""
        return self._pipeline.floods.dropped

    @property
    def scarce(self) -> str | None:
        """Why access lines are left out now; None while they are not."""
        return next((sink.scarce for sink in self._sinks if sink.scarce is not None), None)

    def standing(self) -> dict[str, Any]:
        """Where it goes and what it has lost since the start, for people."""
        return {
            "file": None if self.path is None else str(self.path),
            "format": self.format,
            "lost": self.lost,
            "access_lines_spared": self.spared,
            "sampled_out": self.sampled,
        }

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
        if self.path is None:
            return True
        try:
            fd = open_log(self.path)
        except OSError as error:
            _own.error("log.reopen_failed", path=self.path, reason=error.strerror)
            return False
        self._sinks[-1].replace(fd)
        return True

    async def watch(self) -> None:
        """Looks after floods and room, see :meth:`look`; never ends."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Tells of floods that are over, and that room is scarce or is there again. ``now``: monotonic seconds."""
        if self._pipeline.floods.due(now):
            self._pipeline.tell_floods(now)
        for sink in self._sinks:
            sink.look()
            if sink.scarce is None:
                continue
            if sink not in self._told:
                self._told[sink] = now
                Context().run(_own.warning, "log.scarce", reason=sink.scarce, left_out="access lines")
            elif now >= self._told[sink] and sink.may_have_room():
                self._told[sink] = now + PROBE_S
                Context().run(_own.warning, "log.room_again", lost=sink.lost, access_lines_spared=sink.spared)
                if sink.has_room():
                    del self._told[sink]

    def close(self) -> None:
        """Undoes :func:`configure`: events go nowhere again. Idempotent."""
        chain = _chain()
        if self._pipeline in chain:
            self._pipeline.tell_floods()
            chain[:] = [_drop]
            logging.captureWarnings(False)
            logging.getLogger().removeHandler(self._bridge)
            self._hooks.undo()
            for name in list(self._levels):
                self.set_level(None, name)
        if self.path is not None:
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
        self._hooks.install()


_own = get_logger(LOGGER)

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
    monotonic: Callable[[], float] = time.monotonic,
) -> LogHandle:
    """Sends all events to ``stream`` in the format of the settings, and to the file at ``path`` as JSON, unless that is
    None.

    ``secrets`` are masked wherever they appear. ``clock`` gives the Unix time in seconds, ``monotonic`` seconds that no
    one sets. The file's directory must exist. A configuration before this one is closed. Raises OSError where the file
    cannot be opened.
    """
    console = settings.format == "console"
    render = console_renderer(colors=stream.isatty()) if console else render_json
    sinks = (Sink.of(stream),) if path is None else (Sink.of(stream), Sink(open_log(path)))
    outputs = zip((render, render_json), sinks, strict=False)
    handle = LogHandle(Pipeline(outputs, clock, monotonic), sinks, path, settings.format)
    handle.install()
    handle.apply(settings, secrets)
    return handle
