"""Logs: one pipeline for our own events and for everything that uses the standard library's ``logging``.

:func:`configure` is called once, by the composition root; modules hold ``log = get_logger(__name__)`` and
call ``log.info("worker.started", pid=…)``. What ``structlog.contextvars`` has bound (``request_id``,
``task_id``, ``worker_id``, ``key_id``, ``lane``) stands on every line. The rules of this file:

- one event is one line, whatever it carries: control characters are escaped, sizes bounded
- secrets are masked by the name of their field, by their look, and by the values known to be secret
- nothing raises into the caller: a line that cannot be rendered or written is counted in ``LogHandle.lost``

Levels are those of the standard library's logger of the same name, so a module's level covers its children.
Before :func:`configure` events go nowhere; ``structlog.testing.capture_logs`` works before and after.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO, get_args

import orjson
import structlog
from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer

from claude_daemon.config import Level, Log
from claude_daemon.layers import SECRET_LIKE, Secret

MAX_TEXT_CHARS = 8 * 1024
"""A value's text; a prompt or a page of HTML is no log line."""

MAX_ITEMS = 64
"""Entries of one list or table, frames of one stack (the innermost)."""

MAX_GROUP = 8
"""Exceptions told of one group; the rest is more of the same."""

MAX_DEPTH = 6
"""Tables in tables, causes of causes; deeper is a cycle, or nothing a person reads."""

MAX_LINE_BYTES = 64 * 1024
"""Journald cuts at 48 KiB by default and most shippers at 64; beyond it only the head of a line is kept."""

MIN_KNOWN_SECRET_CHARS = 8
"""Shorter secrets are words that stand in innocent text."""

LOG_FILE_MODE = 0o600

Event = MutableMapping[str, Any]

_HEAD = frozenset({"ts", "level", "event", "logger"})
_SECRET_NAME = re.compile(
    r"(.*[_-])?(authorization|api[_-]?key|token|secret|password|passwd|cookie)|key", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")
# The only escape sequences in a finished line are the console renderer's own.
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
# What breaks lines or moves the cursor or the reading direction, in a terminal or a viewer.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


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


class Masker:
    """Makes values fit to be written: plain JSON types, bounded, without secrets."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        texts = (secret.reveal() for secret in secrets)
        self._known = tuple(text for text in texts if len(text) >= MIN_KNOWN_SECRET_CHARS)

    def field(self, name: str, value: object, depth: int = 0) -> Any:
        """The value as it may be written under this name."""
        if _names_a_secret(name) and value is not None:
            return "***"
        return self.value(value, depth)

    def value(self, value: object, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self.text(value)  # type: ignore[arg-type]
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -(2**63) <= value < 2**64 else self.text(str(value)[:MAX_ITEMS])  # type: ignore[operator]
        if kind is float:
            return value if abs(value) < float("inf") else str(value)  # type: ignore[arg-type]
        if depth < MAX_DEPTH:
            if isinstance(value, Mapping):
                return {
                    (key := self.text(str(name))): self.field(key, entry, depth + 1)
                    for name, entry in list(value.items())[:MAX_ITEMS]
                }
            if isinstance(value, list | tuple | set | frozenset):
                return [self.value(entry, depth + 1) for entry in list(value)[:MAX_ITEMS]]
        return self.text(_said(value))

    def text(self, text: str) -> str:
        if len(text) > MAX_TEXT_CHARS:
            text = f"{text[:MAX_TEXT_CHARS]}… ({len(text)} characters)"
        low = text.lower()
        if "sk-" in low or "cd_" in low or "bearer" in low:
            text = SECRET_LIKE.sub(_prefix_only, text)
        if "://" in text:
            text = _URL_PASSWORD.sub("***", text)
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, "***")
        return text


@lru_cache(maxsize=1024)
def _names_a_secret(name: str) -> bool:
    return _SECRET_NAME.fullmatch(name) is not None


def _prefix_only(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}***"


def _said(value: object) -> str:
    """``str`` of what has one (paths, enums, exceptions), with a word for what fails at it."""
    try:
        return repr(value) if isinstance(value, bytes | bytearray) else str(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def exception_fields(error: BaseException, depth: int = 0) -> dict[str, Any]:
    """``type``, ``message``, ``stack`` (outermost first); ``cause`` and ``exceptions`` where there are."""
    fields: dict[str, Any] = {
        "type": type(error).__qualname__,
        "message": _said(error),
        "stack": _stack(error.__traceback__),
    }
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth < MAX_DEPTH:
        fields["cause"] = exception_fields(cause, depth + 1)
    if isinstance(error, BaseExceptionGroup) and depth < MAX_DEPTH:
        fields["exceptions"] = [exception_fields(inner, depth + 1) for inner in error.exceptions[:MAX_GROUP]]
    return fields


def _stack(traceback: TracebackType | None) -> list[str]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}")
        traceback = traceback.tb_next
    return frames[-MAX_ITEMS:]


def _exception_of(info: object) -> BaseException | None:
    """What ``exc_info`` means: an exception, True for the one being handled, or ``sys.exc_info()``."""
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple):
        return info[1]  # type: ignore[no-any-return]
    return sys.exception() if info else None


def escaped(text: str) -> str:
    """Text without anything that could end a line, move a cursor or turn the reading direction."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def render_json(line: Event) -> bytes:
    """One JSON object in one line: whatever could break or disturb the line is an escape in it."""
    try:
        rendered = orjson.dumps(line)
    except TypeError:  # lone surrogates
        rendered = json.dumps(line).encode()
    if rendered.isascii() and b"\x7f" not in rendered:
        return rendered
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", rendered.decode()).encode()


def console_renderer(*, colors: bool) -> Callable[[Event], bytes]:
    """For people: aligned, values quoted, exceptions indented below their line behind a bar."""
    render = ConsoleRenderer(colors=colors, timestamp_key="ts", repr_native_str=True, sort_keys=False, pad_event_to=28)

    def rendered(line: Event) -> bytes:
        line = {escaped(name): value for name, value in line.items()}
        line["event"], line["logger"] = escaped(line["event"]), escaped(line["logger"])
        exception = line.pop("exception", None)
        text = render(None, line["level"], line)
        if isinstance(exception, dict):
            text = "\n    | ".join((text, *map(escaped, _told(exception))))
        return text.encode()

    return rendered


def _told(fields: Mapping[str, Any], why: str = "") -> Iterator[str]:
    """The lines of an exception, its causes after it."""
    yield f"{why}{fields['type']}: {fields['message']}"
    yield from (f"  {frame}" for frame in fields["stack"])
    if cause := fields.get("cause"):
        yield from _told(cause, "because of ")
    for inner in fields.get("exceptions", ()):
        yield from _told(inner, "including ")


class Sink:
    """Where finished lines go. Never raises: what cannot be written is counted in ``lost``."""

    def __init__(self, fd: int | None, stream: TextIO | None = None, *, uncoloured: bool = False) -> None:
        self.lost = 0
        self._uncoloured = uncoloured
        self._fd = fd
        self._stream = stream
        self._torn = False
        # Re-entrant: a finaliser that warns may run while its own thread holds it.
        self._lock = threading.RLock()

    @classmethod
    def of(cls, stream: TextIO) -> Sink:
        """To the stream's descriptor where it has one: one system call a line, no buffer to lose."""
        try:
            stream.flush()
            return cls(stream.fileno())
        except (OSError, ValueError):
            return cls(None, stream)

    def write(self, line: bytes) -> None:
        if self._uncoloured:
            line = _COLOUR.sub(b"", line)
        with self._lock:
            try:
                self._put(line + b"\n")
            except (OSError, ValueError):
                self.lost += 1

    def _put(self, line: bytes) -> None:
        if self._fd is None:
            if self._stream is None:
                raise ValueError("closed")
            self._stream.write(line.decode())
            self._stream.flush()
            return
        if self._torn:  # a full disk took half of an earlier line
            line = b"\n" + line
        while line:
            line = line[os.write(self._fd, line) :]
            self._torn = bool(line)

    def replace(self, fd: int) -> None:
        """Goes on with another descriptor and closes the old one."""
        with self._lock:
            self.close()
            self._fd, self._torn = fd, False

    def close(self) -> None:
        with self._lock:
            old, self._fd = self._fd, None
            if old is not None:
                os.close(old)


def open_log(path: Path) -> int:
    """A descriptor that appends to the file, which then is 0600. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, LOG_FILE_MODE)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) != LOG_FILE_MODE:
        os.fchmod(fd, LOG_FILE_MODE)
    return fd


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
        if (error := _exception_of(fields.pop("exc_info", None))) is not None:
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
            event = _said(record.msg)
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
