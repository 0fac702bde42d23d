"""JSON schemas that clients send: bounded by reading them, applied in a process that can be killed.

Any pattern is allowed, ``^(a+)+$`` too: no client's regular expression runs in the daemon itself. Nothing is
ever retrieved: :func:`check_schema` refuses references that leave the schema, and the child resolves none.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from claude_daemon.core.errors import Code, Failure, Fault, Refusal

MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 32
MAX_SUBSCHEMAS: Final = 1000
MAX_TEXT_BYTES: Final = 8 * 1024 * 1024
"""An answer of this length has taken a model a day."""
MAX_WAITING: Final = 16
"""Checks that wait for their turn: with every one of them at its deadline, the last waits half a minute."""
DEADLINE_SECONDS: Final = 2.0
START_SECONDS: Final = 60.0
"""A fresh child is there after 0.1 s; a machine that swaps, or boots with all its services at once, needs longer, and a
daemon that gives up at its start is worse than one that starts late."""

_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_MAPS: Final = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
"""Keywords whose value maps names to schemas; names are not keywords."""
_DATA: Final = frozenset({"const", "enum", "default", "examples", "example", "required", "type"})
"""Keywords whose value is no schema."""

_CHILD: Final = str(Path(__file__).with_name("schema_child.py"))


def check_schema(schema: object) -> list[Fault]:
    """What makes `schema` unacceptable without applying it; paths begin in it. Pure, linear in its size."""
    if not isinstance(schema, dict):
        return [Fault(path="", message="A schema must be a JSON object.")]
    try:
        size = len(orjson.dumps(schema))
    except orjson.JSONEncodeError:
        return [Fault(path="", message=f"A schema must not be nested more than {MAX_DEPTH} levels deep.")]
    if size > MAX_SCHEMA_BYTES:
        return [Fault(path="", message=f"A schema must not be larger than {MAX_SCHEMA_BYTES // 1024} KiB.")]
    faults: list[Fault] = []
    for count, (path, depth, node) in enumerate(_subschemas(schema)):
        if count >= MAX_SUBSCHEMAS:
            return [
                *faults,
                Fault(path="", message=f"A schema must not hold more than {MAX_SUBSCHEMAS} schemas."),
            ]
        if depth > MAX_DEPTH:
            return [
                *faults,
                Fault(path=path, message=f"A schema must not be nested more than {MAX_DEPTH} levels deep."),
            ]
        faults += _remote_references(path, node)
    return faults


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every schema in `schema`, itself first, with its dotted path and depth."""
    waiting: list[tuple[str, int, dict[str, Any]]] = [("", 0, schema)]
    while waiting:
        path, depth, node = waiting.pop()
        yield path, depth, node
        for keyword, value in node.items():
            if keyword not in _DATA:
                waiting += _below(_join(path, keyword), depth + 1, value, names=keyword in _MAPS)


def _below(path: str, depth: int, value: object, *, names: bool) -> list[tuple[str, int, dict[str, Any]]]:
    """The schemas that a keyword's value is or holds."""
    if isinstance(value, dict) and not names:
        return [(path, depth, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(_join(path, key), depth, inner) for key, inner in items if isinstance(inner, dict)]


def _remote_references(path: str, node: Mapping[str, Any]) -> list[Fault]:
    return [
        Fault(path=_join(path, keyword), message="A reference must stay within the schema and begin with `#`.")
        for keyword in _REFERENCES
        if isinstance(node.get(keyword), str) and not node[keyword].startswith("#")
    ]


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)


class SchemaChecker:
    """Applies schemas in one warm child, one at a time; starts it when it is first needed.

    A child that misses the deadline, or is interrupted, is killed, and the next check has a fresh one. Call
    :meth:`stop` at the end.
    """

    def __init__(self, *, deadline_seconds: float = DEADLINE_SECONDS, max_waiting: int = MAX_WAITING) -> None:
        self._deadline_seconds = deadline_seconds
        self._max_waiting = max_waiting
        self._waiting = 0
        self._stopped = False
        self._turn = asyncio.Lock()
        self._child: Process | None = None
        self._killed: list[Process] = []

    @property
    def pids(self) -> set[int]:
        """The processes that are its own."""
        return {child.pid for child in (self._child, *self._killed) if child is not None}

    async def start(self) -> None:
        """Warms the child. Raises OSError where none can be started; each check tries again."""
        async with self._turn:
            await self._warm_child()

    async def stop(self) -> None:
        """Ends the child and waits until it is gone; a check under way fails, and so does any later one."""
        self._stopped = True
        self._kill()
        await self._bury()

    async def check(self, schema: object) -> list[Fault]:
        """What is wrong with `schema`: what :func:`check_schema` finds, else what its metaschema does.

        Raises Refusal where it cannot be checked: too many checks wait, or the child cannot be started.
        """
        faults = check_schema(schema)
        if faults:
            return faults
        failure = await self._ask({"schema": orjson.dumps(schema).decode()})
        if failure is None:
            return []
        if failure.code is not Code.SCHEMA_MISMATCH:
            raise Refusal(failure)  # not the schema's fault
        return list(failure.faults) or [Fault(path="", message=failure.message)]

    async def validate(self, schema: Mapping[str, Any], text: str) -> Failure | None:
        """None where `text` is JSON that satisfies `schema`, which has passed :meth:`check`.

        Else ``schema_mismatch`` with the place and the reason, ``overloaded`` where too many checks wait, or
        ``engine_unavailable`` where the child cannot be started.
        """
        if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
            return _mismatch("The answer is too long to be checked against its schema.")
        return await self._ask({"schema": orjson.dumps(schema).decode(), "text": text})

    async def _ask(self, question: Mapping[str, Any]) -> Failure | None:
        if self._waiting >= self._max_waiting:
            return Failure(code=Code.OVERLOADED, message="Too many schema checks are waiting.", retry_after_seconds=1)
        self._waiting += 1
        try:
            async with self._turn:
                return await self._exchange(orjson.dumps(question) + b"\n")
        finally:
            self._waiting -= 1

    async def _exchange(self, line: bytes) -> Failure | None:
        try:
            child = await self._warm_child()
        except OSError as error:
            return Failure(code=Code.ENGINE_UNAVAILABLE, message=f"The schema checker cannot be started: {error}.")
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return _failure(await _answer(child, line))
        except TimeoutError:
            self._kill()
            return _mismatch(f"The schema check missed its deadline of {self._deadline_seconds:g} s.")
        except (OSError, EOFError):
            self._kill()
            return _mismatch("The schema check ended early: it needed too much memory or time.")
        except BaseException:
            self._kill()  # its answer is still to come, and the next question must not get it
            raise

    async def _warm_child(self) -> Process:
        if self._child is not None and self._child.returncode is None:
            return self._child
        self._kill()
        await self._bury()
        if self._stopped:
            raise OSError("it has been stopped")
        self._child = child = await _spawn()
        try:
            async with asyncio.timeout(START_SECONDS):
                await _answer(child, b"")
        except BaseException as error:
            self._kill()
            if isinstance(error, TimeoutError):
                raise OSError(f"its process was not ready within {START_SECONDS:g} s") from error
            if isinstance(error, EOFError):
                raise OSError("its process ended before it was ready") from error
            raise
        return child

    def _kill(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            self._killed.append(self._child)
            self._child = None

    async def _bury(self) -> None:
        while self._killed:
            await self._killed.pop().wait()


async def _spawn() -> Process:
    """The child, isolated: an empty environment, and no other path than the libraries'."""
    paths = [path for path in sys.path if Path(path).is_absolute()]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        _CHILD,
        *paths,
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )


async def _answer(child: Process, line: bytes) -> dict[str, Any]:
    """The child's answer to one line. Raises EOFError or OSError where it died."""
    assert child.stdin is not None and child.stdout is not None  # both are pipes
    child.stdin.write(line)
    await child.stdin.drain()
    told = await child.stdout.readline()
    if not told.endswith(b"\n"):
        raise EOFError
    answer: dict[str, Any] = orjson.loads(told)
    return answer


def _failure(answer: Mapping[str, Any]) -> Failure | None:
    if answer["ok"]:
        return None
    path, reason = answer["path"], answer["reason"]
    where = f"At `{path}`: " if path else ""
    return _mismatch(f"The answer does not satisfy its schema. {where}{reason}", Fault(path=path, message=reason))


def _mismatch(message: str, *faults: Fault) -> Failure:
    return Failure(code=Code.SCHEMA_MISMATCH, message=message, faults=faults)
