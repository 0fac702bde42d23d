"""Where layers come from: a TOML file, the environment, flags; and secrets, which have places of their own.

Nothing raises on bad input: each reader adds to ``faults`` and goes on.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from claude_daemon.layers.fault import Fault, nearest
from claude_daemon.layers.schema import NONE, PREFIX, is_secret, type_at, variables
from claude_daemon.layers.text import echo, parse
from claude_daemon.layers.tree import KeyPath, Layer, Leaf, Origin, Table, at, dotted, leaves, merge, table
from claude_daemon.secret import SECRET_LIKE, Secret

STANDALONE = tuple(PREFIX + name for name in ("HOME", "CONFIG", "PROFILE", "SOCKET", "SUPERVISOR"))
"""Variables that name no ``<SECTION>__<KEY>``."""

MAX_CONFIG_BYTES = 1024 * 1024
"""A configuration is a page or two; what is larger is some other file."""

MAX_SECRET_BYTES = 16 * 1024
"""Keys and tokens are below 1 KiB; room for a long URL, and no whole disk read by mistake."""


def read_toml(file: Path, model: type[BaseModel], faults: list[Fault], *, required: bool) -> Table:
    """The tree of a TOML file; empty where it is absent and not required, or where it cannot be read."""
    origin = Origin(layer=Layer.FILE, where=str(file))
    values: dict[str, Any] = {}
    text = ""
    try:
        with opened(file) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = _text(stream, MAX_CONFIG_BYTES)
        values = tomllib.loads(text)
        faults += _exposed(values, model, file, mode)
    except FileNotFoundError:
        if required:
            faults.append(Fault(where=str(file), message="no such file"))
    except OSError as error:
        faults.append(Fault(where=str(file), message=f"cannot be read: {error.strerror}"))
    except tomllib.TOMLDecodeError as error:
        faults.append(_syntax(file, error, text))
    except (ValueError, RecursionError) as error:
        faults.append(Fault(where=str(file), message=str(error)))
    return table(values, origin)


def opened(file: Path) -> BinaryIO:
    """A regular file, for reading; the caller closes it. Raises OSError, for a pipe or a device too: to open or read
    one may wait without end, and a reload happens while the daemon serves."""
    stream = open(file, "rb", opener=_at_once)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise OSError(errno.EINVAL, "not a regular file", str(file))


def _at_once(path: str, flags: int) -> int:
    """Waits for nobody who writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _text(stream: BinaryIO, most: int) -> str:
    """All of a file. Raises ValueError where it is larger than ``most`` bytes, or no UTF-8."""
    content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"is larger than {most} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (at byte {error.start})") from None


def _syntax(file: Path, error: tomllib.TOMLDecodeError, text: str) -> Fault:
    """Where the syntax is broken; the parser tells it in its message only (before Python 3.14)."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
    if not found:
        return Fault(where=str(file), message=str(error))
    *_, last = text.split("\n")
    line, column = found[2] or text.count("\n") + 1, found[3] or len(last) + 1
    return Fault(where=f"{file}:{line}:{column}", message=found[1])


def _exposed(values: Mapping[str, Any], model: type[BaseModel], file: Path, mode: int) -> Iterator[Fault]:
    """Secrets that others can read, and what looks like a secret under a key that is none."""
    for path, value in leaves(values):
        if is_secret(type_at(model, path)):
            if mode & 0o044 and value not in ("", NONE):
                message = f"is a secret, and others may read this file (mode {mode & 0o777:04o}): chmod 600"
                yield Fault(where=str(file), key=dotted(path), message=message)
        elif SECRET_LIKE.search(str(value)):
            message = "holds what looks like a key or token; this value is not kept secret"
            yield Fault(where=str(file), key=dotted(path), message=message)


def from_environ(environ: Mapping[str, str], model: type[BaseModel], faults: list[Fault]) -> Table:
    """The tree of all ``CLAUDE_DAEMON_<SECTION>__<KEY>``; any other ``CLAUDE_DAEMON_*`` is a fault."""
    known = variables(model)
    secrets = {name: path for name, path in known.items() if is_secret(type_at(model, path))}
    names = {*known, *(f"{name}_FILE" for name in secrets), *STANDALONE}
    result = Table(entries={}, origin=Origin(layer=Layer.ENVIRONMENT))
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in names:
            faults.append(Fault(where=name, message=f"unknown variable{_hint(name, known, sorted(names))}"))
        elif name in known and name not in secrets:
            path, origin = known[name], Origin(layer=Layer.ENVIRONMENT, where=name)
            if (leaf := _parsed(environ[name], path, model, origin, faults)) is not None:
                result = merge(result, leaf, faults)
    for name, path in secrets.items():
        if (secret := read_secret(name, environ, faults)) is not None:
            unset = secret.value.reveal() == NONE
            result = merge(result, at(path, NONE if unset else secret.value, secret.origin), faults)
    return result


def _hint(name: str, known: Mapping[str, KeyPath], names: Sequence[str]) -> str:
    stem = name.removesuffix("_FILE")
    if stem != name and stem in known:
        return f": only secrets are read from files; set {stem}"
    return nearest(name, names)


def from_flags(flags: Iterable[tuple[str, str, Any]], model: type[BaseModel], faults: list[Fault]) -> Table:
    """The tree of flags, each (flag, dotted key, value); texts are parsed as variables are."""
    result = Table(entries={}, origin=Origin(layer=Layer.FLAG))
    for flag, key, value in flags:
        path, origin = tuple(key.split(".")), Origin(layer=Layer.FLAG, where=flag)
        leaf = _parsed(value, path, model, origin, faults)
        if leaf is not None:
            result = merge(result, leaf, faults)
    return result


def _parsed(value: object, path: KeyPath, model: type[BaseModel], origin: Origin, faults: list[Fault]) -> Table | None:
    annotation = type_at(model, path)
    try:
        return at(path, parse(value, annotation) if isinstance(value, str) else value, origin)
    except ValueError as error:
        shown = echo(value, annotation)
        faults.append(Fault(where=origin.where, key=dotted(path), message=f"{error}{shown}"))
        return None


def read_secret(name: str, environ: Mapping[str, str], faults: list[Fault]) -> Leaf | None:
    """A secret from ``<name>``, ``<name>_FILE`` or ``$CREDENTIALS_DIRECTORY/<name>``; two are a fault.

    Empty variables count as not set; an empty or unreadable file is a fault that names it.
    """
    sources: list[tuple[str, Path | None]] = []
    if environ.get(name):
        sources.append((name, None))
    if file := environ.get(f"{name}_FILE"):
        sources.append((f"{name}_FILE", Path(file)))
    if (directory := environ.get("CREDENTIALS_DIRECTORY")) and os.path.lexists(held := Path(directory, name)):
        sources.append((str(held), held))
    if not sources:
        return None
    where, path = sources[0]
    if len(sources) > 1:
        others = " and ".join(source for source, _ in sources)
        faults.append(Fault(where=where, message=f"set more than once, by {others}; keep one"))
        return None
    try:
        text = environ[name] if path is None else _secret_file(path)
        secret = _one_line(text)
    except ValueError as error:
        blame = "" if path is None else f"{path} "
        faults.append(Fault(where=where, message=f"{blame}{error}"))
        return None
    shown = where if path is None or where == str(path) else f"{where} ({path})"
    return Leaf(value=secret, origin=Origin(layer=Layer.ENVIRONMENT, where=shown))


def _secret_file(path: Path) -> str:
    try:
        with opened(path) as stream:
            text = _text(stream, MAX_SECRET_BYTES).strip()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if not text:
        raise ValueError("is empty")
    return text


def _one_line(text: str) -> Secret:
    """Secrets become header values and URLs: a line break inside one is a mistake, or an injection."""
    if not text.isprintable():
        raise ValueError("holds a line break or another unprintable character")
    return Secret(text)
