"""Where settings come from, and what is wrong with them.

defaults < profile < TOML file < environment < flags. Every layer is a tree of :class:`Table` and
:class:`Leaf`; trees are merged *before* anything is validated, so each value, good or bad, can still name its
source. This file knows no setting by name: types come from the pydantic model it is given.

- tables merge key by key, lists and plain values replace
- nothing raises on bad input: each reader adds to a list of :class:`Fault`, and ``config.load`` raises them
  all as one :class:`ConfigError`
- no message ever holds a secret, nor a value that looks like one
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, core_schema

if TYPE_CHECKING:
    from claude_daemon.config import Loaded

PREFIX = "CLAUDE_DAEMON_"
STANDALONE = tuple(PREFIX + name for name in ("HOME", "CONFIG", "PROFILE", "SOCKET", "SUPERVISOR"))
"""Variables that name no ``<SECTION>__<KEY>``."""

MAX_CONFIG_BYTES = 1024 * 1024
"""A configuration is a page or two; what is larger is some other file."""

MAX_SECRET_BYTES = 16 * 1024
"""Keys and tokens are below 1 KiB; room for a long URL, and no whole disk read by mistake."""

MAX_ECHO_CHARS = 60
"""A longer value is not repeated in a fault: it is no slip of the finger, and hides the reason."""

SECRET_LIKE = re.compile(r"(?<![A-Za-z0-9])(sk-|cd_)[A-Za-z0-9_-]{8,}|\b(Bearer\s+)[^\s\"',;]+", re.IGNORECASE)
"""Text that is a key or token wherever it stands. Groups 1 and 2 hold what may be shown."""

NONE = "none"
"""How a file, a variable or a flag says that an optional value is not set; TOML has no null."""

KeyPath = tuple[str, ...]
Model = TypeVar("Model", bound=BaseModel)


class Secret:
    """A text that is shown only by :meth:`reveal`.

    ``str``, ``repr`` and pydantic's JSON give ``***``; ``json`` and ``orjson`` refuse it, and so does pickle.
    Comparison takes the same time wherever two secrets differ. Never empty; raises ValueError for "".
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("a secret must not be empty")
        self._text = text

    def reveal(self) -> str:
        return self._text

    def digest(self) -> str:
        """SHA-256 in hex: equal for equal secrets, and safe to compare later."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def _bytes(self) -> bytes:
        return self._text.encode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        masked = core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        return core_schema.no_info_plain_validator_function(cls._parse, serialization=masked)

    @classmethod
    def _parse(cls, value: object) -> Secret:
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Secret):
            return value
        raise ValueError("must be a string")


class Octal:
    """Marks an ``Annotated[int, …]`` that people write and read in octal."""


class Layer(StrEnum):
    DEFAULT = "default"
    PROFILE = "profile"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which layer a value came from, and where in it: a path, a variable, a flag, the profile's name."""

    layer: Layer
    where: str = ""

    def __str__(self) -> str:
        return f"{self.layer} {self.where}".rstrip()


DEFAULT = Origin(layer=Layer.DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with the configuration.

    ``where`` is a file (with line and column where its syntax is broken), a variable or a flag; ``key`` is
    the dotted key, "" where there is none.
    """

    where: str
    key: str = ""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ConfigError(Exception):
    """The configuration is bad; ``faults`` holds everything that is wrong with it, at least one."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Values that are fine alone and not together: blamed on ``key``, void where one of ``given`` is bad."""

    key: str
    message: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    entries: Mapping[str, Node]
    origin: Origin


Node = Leaf | Table


def table(values: BaseModel | Mapping[str, Any], origin: Origin) -> Table:
    """Mappings become tables, models too; everything else, lists included, is one leaf."""
    entries = {str(name): _node(value, origin) for name, value in dict(values).items()}
    return Table(entries=entries, origin=origin)


def _node(value: object, origin: Origin) -> Node:
    if isinstance(value, BaseModel | Mapping):
        return table(value, origin)
    return Leaf(value=value, origin=origin)


def at(path: KeyPath, value: object, origin: Origin) -> Table:
    """A tree that holds one value."""
    for name in reversed(path[1:]):
        value = {name: value}
    return table({path[0]: value}, origin)


def merge(below: Table, above: Table, faults: list[Fault], path: KeyPath = ()) -> Table:
    """``above`` laid over ``below``. A plain value where ``below`` has a table is a fault, and left out."""
    entries = dict(below.entries)
    for name, node in above.entries.items():
        known = entries.get(name)
        if isinstance(known, Table) and isinstance(node, Table):
            entries[name] = merge(known, node, faults, (*path, name))
        elif isinstance(known, Table):
            key = dotted((*path, name))
            faults.append(Fault(where=node.origin.where, key=key, message="must be a table"))
        else:
            entries[name] = node
    return Table(entries=entries, origin=above.origin)


def plain(node: Node) -> Any:
    """The bare values of a tree."""
    return {k: plain(v) for k, v in node.entries.items()} if isinstance(node, Table) else node.value


def leaves(value: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value below a model or mapping with its path; an empty table counts as a value."""
    entries = dict(value) if isinstance(value, BaseModel | Mapping) else None
    if not entries:
        yield path, {} if entries == {} else value
        return
    for name, entry in entries.items():
        yield from leaves(entry, (*path, str(name)))


def origin_at(node: Node, path: KeyPath) -> Origin:
    """The origin of the value at ``path``, or of the nearest table above it."""
    for name in path:
        child = node.entries.get(name) if isinstance(node, Table) else None
        if child is None:
            break
        node = child
    return node.origin


def without(node: Table, path: KeyPath) -> Table:
    """The tree without what stands at ``path``."""
    name, *rest = path
    entries = dict(node.entries)
    child = entries.pop(name, None)
    if rest and isinstance(child, Table):
        entries[name] = without(child, tuple(rest))
    return Table(entries=entries, origin=node.origin)


def dotted(path: Sequence[str | int]) -> str:
    """``http.port``, ``roots[0].path``, ``prices."claude-3.5".input``: as TOML writes it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part))
    return text


def bare(annotation: Any) -> tuple[Any, tuple[object, ...]]:
    """The type inside ``Annotated[…]`` and ``… | None``, and the notes met on the way (NoneType is one)."""
    notes: tuple[object, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            notes += tuple(more)
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(arm for arm in get_args(annotation) if arm is not NoneType)
            notes += (NoneType,)
        else:
            return annotation, notes


def type_at(annotation: Any, path: Sequence[str | int]) -> Any:
    """The annotation at a path below a model, None where the model has no such key."""
    for part in path:
        kind, _ = bare(annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            annotation = None if field is None else field.rebuild_annotation()
        elif get_origin(kind) is not None and len(get_args(kind)) > 1:
            annotation = get_args(kind)[0 if isinstance(part, int) else 1]
        else:
            return None
    return annotation


def is_secret(annotation: Any) -> bool:
    return bare(annotation)[0] is Secret


@cache
def variables(model: type[BaseModel]) -> Mapping[str, KeyPath]:
    """Every variable that sets something: ``CLAUDE_DAEMON_HTTP__PORT`` → ``("http", "port")``.

    A section that is itself a table of names or a list (``mcp``, ``roots``) has one variable for all of it.
    """
    found: dict[str, KeyPath] = {}
    for section, field in model.model_fields.items():
        kind, _ = bare(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= {f"{PREFIX}{section}__{key}".upper(): (section, key) for key in kind.model_fields}
        else:
            found[f"{PREFIX}{section}".upper()] = (section,)
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean …?``, or nothing where nothing is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse(text: str, annotation: Any) -> Any:
    """A text as the type asks: numbers, booleans, comma or JSON lists, JSON tables.

    ``none`` is left for the model, and so is all that it parses itself. Raises ValueError with what is
    expected.
    """
    kind, notes = bare(annotation)
    origin = get_origin(kind)
    if text == NONE or (not text and NoneType in notes):
        return NONE
    if kind is Secret:
        return Secret(text)
    if kind is bool:
        return _looked_up(text)
    if kind is int:
        return _whole(text, octal=any(note is Octal for note in notes))
    if kind is float:
        return _number(text)
    if origin is tuple:
        return _listed(text, get_args(kind)[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _json(text, dict, "a table in JSON")
    return text


def _looked_up(text: str) -> bool:
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError("must be true or false (or 1, 0, yes, no)") from None


def _whole(text: str, *, octal: bool) -> int:
    try:
        return int(text, 8 if octal else 10)
    except ValueError:
        raise ValueError(f"must be a whole number{' in octal' * octal}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _listed(text: str, item: Any) -> list[Any]:
    """``a, b`` or ``["a", "b"]``. ``[::1]`` is no JSON, and thus one name."""
    if text.strip().startswith("["):
        try:
            return list(_json(text, list, "a list"))
        except ValueError:
            if bare(item)[0] is not str:
                raise
    return [parse(part, item) for part in map(str.strip, text.split(",")) if part]


def _json(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise ValueError(f"must be {what}")
    return value


def read_toml(file: Path, model: type[BaseModel], faults: list[Fault], *, required: bool) -> Table:
    """The tree of a TOML file; empty where it is absent and not required, or where it cannot be read."""
    origin = Origin(layer=Layer.FILE, where=str(file))
    values: dict[str, Any] = {}
    text = ""
    try:
        with file.open("rb") as stream:
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
        shown = _echo(value, annotation)
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
        with path.open("rb") as stream:
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


def validate(model: type[Model], root: Table, faults: list[Fault], *, context: object = None) -> Model | None:
    """The model, or None with one more fault for everything that is wrong.

    Bad values are taken out and the rest is validated again, so that conflicts between good values are told
    in the same breath as bad ones.
    """
    bad: list[KeyPath] = []
    while True:
        try:
            settings = model.model_validate(plain(root), context=context)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return None if bad else settings
        pruned = root
        for detail in details:
            found, path = _faults_of(detail, model, root, bad)
            faults += [fault for fault in found if fault not in faults]
            if path:
                bad.append(path)
                pruned = without(pruned, path)
        if plain(pruned) == plain(root):
            return None
        root = pruned


def _faults_of(
    detail: ErrorDetails, model: type[BaseModel], root: Table, bad: Sequence[KeyPath]
) -> tuple[list[Fault], KeyPath]:
    """What one pydantic error says, and the path whose removal cures it (empty for conflicts)."""
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    named = tuple(map(str, takewhile(lambda part: isinstance(part, str), loc)))
    if detail["type"] == CONFLICT:
        return [
            Fault(
                where=origin_at(root, (*named, conflict.key)).where or "defaults",
                key=dotted((*loc, conflict.key)),
                message=conflict.message,
            )
            for conflict in detail["ctx"]["conflicts"]
            if not any(path[: len(named) + 1] == (*named, given) for given in conflict.given for path in bad)
        ], ()
    fault = Fault(where=origin_at(root, named).where, key=dotted(loc), message=_message(detail, loc, model))
    return [fault], named[:-1] if detail["type"] == "missing" and len(named) == len(loc) else named


CONFLICT = "conflict"
"""The type of the pydantic error that carries ``ctx["conflicts"]``, a list of :class:`Conflict`."""

_WORDS = {
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "mapping_type": "must be a table",
    "tuple_type": "must be a list",
    "bool_type": "must be true or false",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be a plain name: letters, digits and a few marks, no mark in front",
    "path_type": "must be a path",
}


def _message(detail: ErrorDetails, loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    annotation = type_at(model, loc)
    if detail["type"] == "extra_forbidden":
        return _unknown(loc, model)
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
    else:
        text = _WORDS.get(detail["type"], detail["msg"].replace("Input should be", "must be"))
        text = text.replace("a valid string", "a string").replace("a valid integer", "a whole number")
    return text + _echo(detail["input"], annotation)


def _unknown(loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    *parents, name = loc
    kind, _ = bare(type_at(model, parents))
    hint = nearest(str(name), list(kind.model_fields))
    if not hint:
        homes = [key for key in map(dotted, variables(model).values()) if key.endswith(f".{name}")]
        hint = f"; did you mean {homes[0]}?" if homes else ""
    return f"unknown {'key' if parents else 'section'}{hint}"


def _echo(value: object, annotation: Any) -> str:
    """``, not 'abc'`` for what may be shown: short plain values that neither are nor look like secrets."""
    if is_secret(annotation) or not isinstance(value, str | int | float):
        return ""
    text = repr(value)
    hidden = len(text) > MAX_ECHO_CHARS or SECRET_LIKE.search(text) or re.search(r"://[^/]*@", text)
    return "" if hidden else f", not {text}"


def origins(settings: BaseModel, root: Table) -> dict[str, Origin]:
    """The origin of every effective value, by dotted key."""
    return {dotted(path): origin_at(root, path) for path, _ in leaves(settings)}


def explain(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Every effective value as (dotted key, value as TOML writes it, origin); secrets as ``***``.

    The last row is the credential: its kind and where it was found.
    """
    rows = []
    for path, value in leaves(loaded.settings):
        key, notes = dotted(path), bare(type_at(type(loaded.settings), path))[1]
        text = f"0o{value:o}" if any(note is Octal for note in notes) else _shown(value)
        rows.append((key, text, str(loaded.origins[key])))
    credential = loaded.credential
    if credential is None:
        return [*rows, ("credential", NONE, str(DEFAULT))]
    return [*rows, ("credential", f"{credential.kind} ***", str(credential.origin))]


def _shown(value: object) -> str:
    if value is None or isinstance(value, Secret):
        return NONE if value is None else str(value)
    if isinstance(value, BaseModel | Mapping):
        inside = ", ".join(f"{name} = {_shown(entry)}" for name, entry in dict(value).items())
        return f"{{{inside}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    return json.dumps(value, default=str)


def digest(loaded: Loaded) -> str:
    """SHA-256 in hex of all effective values, the credential included; secrets enter by their own digest."""
    credential = loaded.credential
    effective = {
        "settings": loaded.settings,
        "credential": credential and (credential.kind, credential.secret),
        "profile": loaded.profile,
    }
    text = json.dumps(effective, default=_digestible, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digestible(value: object) -> object:
    if isinstance(value, Secret):
        return value.digest()
    return dict(value) if isinstance(value, BaseModel | Mapping) else str(value)
