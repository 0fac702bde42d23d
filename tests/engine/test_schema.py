"""JSON schemas that clients send: bounded, and checked where they can do no harm."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.core.errors import Code, Failure
from claude_daemon.engine import schema as subject
from claude_daemon.engine.schema import SchemaChecker, check_schema

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
EVIL = {"type": "string", "pattern": "^(a+)+$"}
EVIL_TEXT = '"' + "a" * 60 + '!"'


@pytest.fixture
async def checker() -> AsyncIterator[SchemaChecker]:
    made = SchemaChecker()
    yield made
    await made.stop()


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        OBJECT,
        EVIL,
        nested(32),
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}},
        {"properties": {"$ref": {"type": "string"}, "enum": {"$ref": "#"}}},
        {"const": {"$ref": "https://x/y"}, "enum": [{"$ref": "https://x/y"}], "default": nested(99)},
        {"$id": "https://x/y", "anyOf": [True, {"$dynamicRef": "#m"}]},
    ],
)
def test_an_ordinary_schema_has_no_faults(schema: dict[str, Any]) -> None:
    assert check_schema(schema) == []


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        ([], "", "must be a JSON object"),
        (True, "", "must be a JSON object"),
        ({"description": "x" * 70_000}, "", "larger than 64 KiB"),
        (nested(33), ".".join(["not"] * 33), "more than 32 levels"),
        (nested(400), "", "more than 32 levels"),
        ({"anyOf": [{} for _ in range(1001)]}, "", "more than 1000 schemas"),
        ({"$ref": "https://x/y"}, "$ref", "within the schema"),
        ({"$ref": "other.json#/x"}, "$ref", "within the schema"),
        (
            {"properties": {"a": {"items": [{"$ref": "file:///etc/passwd"}]}}},
            "properties.a.items.0.$ref",
            "within",
        ),
        ({"$defs": {"const": {"$dynamicRef": "//x"}}}, "$defs.const.$dynamicRef", "within the schema"),
    ],
)
def test_a_schema_out_of_bounds_is_a_fault_at_its_path(schema: object, path: str, words: str) -> None:
    (fault,) = check_schema(schema)
    assert fault.path == path
    assert words in fault.message


def test_all_remote_references_are_told() -> None:
    faults = check_schema({"allOf": [{"$ref": "http://a"}, {"$ref": "http://b"}]})
    assert sorted(fault.path for fault in faults) == ["allOf.0.$ref", "allOf.1.$ref"]


async def test_what_satisfies_its_schema_passes(checker: SchemaChecker) -> None:
    assert await checker.validate(OBJECT, '{"a": 1, "é": "\\u00e9"}') is None


@pytest.mark.parametrize(
    ("schema", "text", "path", "words"),
    [
        (OBJECT, "{}", "", "'a' is a required property"),
        (OBJECT, '{"a": "x"}', "a", "At `a`: 'x' is not of type 'integer'"),
        ({"items": OBJECT}, '[{"a": 1}, {"a": null}]', "1.a", "At `1.a`"),
        (OBJECT, "Sure! Here is", "", "is not JSON"),
        (OBJECT, "", "", "is not JSON"),
        ({}, "NaN", "", "NaN is no JSON value"),
        ({}, "9" * 5000, "", "is not JSON"),
        ({"$ref": "#"}, "1", "", "nested too deeply"),
        ({}, "[" * 200_000, "", "nested too deeply"),
        ({"type": "objekt"}, "1", "", "schema is not valid at `type`"),
        ({"$ref": "#/$defs/none"}, "1", "", "refers to what it does not contain"),
        ({"pattern": "("}, '"x"', "", "schema"),
        ({"enum": ["x" * 5000]}, "1", "", "…"),
    ],
)
async def test_what_does_not_is_a_mismatch_with_its_place_and_reason(
    checker: SchemaChecker, schema: dict[str, Any], text: str, path: str, words: str
) -> None:
    failure = await checker.validate(schema, text)
    assert failure is not None
    assert failure.code is Code.SCHEMA_MISMATCH
    assert words in failure.message
    assert [fault.path for fault in failure.faults] == [path]
    assert len(failure.message) < 700


async def test_a_schema_that_is_none_is_found_before_it_is_used(checker: SchemaChecker) -> None:
    assert await checker.check(OBJECT) == []
    (fault,) = await checker.check({"type": "objekt"})
    assert "not valid at `type`" in fault.message
    (fault,) = await checker.check({"$ref": "https://x"})
    assert fault.path == "$ref"


async def test_a_remote_reference_makes_no_request(checker: SchemaChecker) -> None:
    """Past the static check, which refuses it already: the child resolves nothing, whatever it is told."""
    connections = 0

    def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for schema in (
            {"$ref": f"http://127.0.0.1:{port}/x"},
            {"$ref": "#/const/x", "const": {"x": {"$ref": f"http://127.0.0.1:{port}/x"}}},
            {"$id": f"http://127.0.0.1:{port}/", "$ref": "y"},
            {"$schema": f"http://127.0.0.1:{port}/", "type": "string"},
            {"$ref": "file:///etc/hostname"},
        ):
            failure = await checker.validate(schema, "1")
            assert failure is not None
        assert connections == 0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)  # the listener does count
        await reader.read()
        writer.close()
    assert connections == 1


async def test_an_evil_pattern_ends_at_the_deadline_and_does_not_stall_the_loop() -> None:
    checker = SchemaChecker(deadline_seconds=0.3)
    await checker.start()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        failure = await checker.validate(EVIL, EVIL_TEXT)
        watching.cancel()
    assert failure is not None
    assert failure.code is Code.SCHEMA_MISMATCH
    assert "deadline of 0.3 s" in failure.message
    assert longest < 0.2
    assert await SchemaChecker.validate(checker, OBJECT, '{"a": 1}') is None
    await checker.stop()


def pid_of(checker: SchemaChecker) -> int:
    assert checker._child is not None
    return checker._child.pid


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_one_child_serves_many_checks_and_a_killed_one_is_replaced(checker: SchemaChecker) -> None:
    await checker.start()
    first = pid_of(checker)
    assert await checker.validate(OBJECT, '{"a": 1}') is None
    assert pid_of(checker) == first
    os.kill(first, signal.SIGKILL)
    child = checker._child
    assert child is not None
    await child.wait()
    assert await checker.validate(OBJECT, '{"a": 1}') is None
    assert pid_of(checker) != first


async def test_a_cancelled_check_leaves_no_answer_for_the_next(checker: SchemaChecker) -> None:
    await checker.start()
    first = pid_of(checker)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await checker.validate(EVIL, EVIL_TEXT)
    assert await checker.validate(OBJECT, '{"a": 1}') is None
    assert gone(first)


async def test_checks_are_made_one_by_one_and_too_many_are_refused() -> None:
    checker = SchemaChecker(max_waiting=3)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(checker.validate(OBJECT, f'{{"a": {n}}}')) for n in range(5)]
    results = [task.result() for task in tasks]
    assert results[:3] == [None, None, None]
    assert [failure and failure.code for failure in results[3:]] == [Code.OVERLOADED, Code.OVERLOADED]
    await checker.stop()


async def test_an_answer_that_is_too_long_is_not_sent_to_the_child(
    checker: SchemaChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "MAX_TEXT_BYTES", 10)
    failure = await checker.validate({}, '"' + "x" * 20 + '"')
    assert failure is not None
    assert "too long" in failure.message
    assert checker._child is None


async def test_stop_leaves_no_process_and_no_way_back() -> None:
    checker = SchemaChecker()
    await checker.start()
    pid = pid_of(checker)
    await checker.stop()
    await checker.stop()
    assert gone(pid)
    failure = await checker.validate({}, "1")
    assert isinstance(failure, Failure)
    assert failure.code is Code.ENGINE_UNAVAILABLE


async def test_stop_in_the_middle_of_a_check_ends_it() -> None:
    checker = SchemaChecker()
    await checker.start()
    async with asyncio.TaskGroup() as group:
        checking = group.create_task(checker.validate(EVIL, EVIL_TEXT))
        await asyncio.sleep(0.05)
        await checker.stop()
    failure = checking.result()
    assert failure is not None
    assert "ended early" in failure.message


async def test_a_child_that_cannot_be_started_is_a_failure(
    checker: SchemaChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for executable in ("/nowhere/python", "/bin/true"):
        monkeypatch.setattr(sys, "executable", executable)
        failure = await checker.validate({}, "1")
        assert failure is not None
        assert failure.code is Code.ENGINE_UNAVAILABLE
    monkeypatch.undo()
    assert await checker.validate({}, "1") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_the_child_has_an_empty_environment_and_limits(checker: SchemaChecker) -> None:
    await checker.start()
    proc = Path("/proc") / str(pid_of(checker))
    assert (proc / "environ").read_bytes() == b""
    told = {line[:26].strip(): line[26:].split()[0] for line in (proc / "limits").read_text().splitlines()}
    assert told["Max open files"] == "3"
    assert told["Max core file size"] == "0"
    assert int(told["Max address space"]) == 1024**3


async def test_a_text_that_needs_too_much_memory_ends_the_check_only() -> None:
    checker = SchemaChecker(deadline_seconds=20)
    failure = await checker.validate({"type": "object"}, "[" + "[],{}," * 1_300_000 + "1]")
    assert failure is not None
    assert await checker.validate(OBJECT, '{"a": 1}') is None
    await checker.stop()
