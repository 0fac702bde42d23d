"""What is true of every command, read off the tree of commands itself: a new one is among them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from claudectl.main import cli
from claudectl.options import GlobalOption
from tests.ctl.conftest import Daemon, Invoke, Reply
from tests.ctl.test_top import SNAPSHOT, STOPPING

Words = tuple[str, ...]


def tree(command: click.Command = cli, path: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    """Every command and every group, with the words that name it."""
    yield path, command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from tree(below, (*path, name))


TREE = dict(tree())
# A group that does something by itself is a command too.
LEAVES = {
    path: command
    for path, command in TREE.items()
    if not isinstance(command, click.Group) or (path and command.invoke_without_command)
}

# Those that need no daemon: without one they do what they do.
LOCAL = {("completion",), ("debug-bundle",), ("doctor",), ("logs",)}
# Whose supervisor is stood in for in test_service.py, where each of its commands is in a table like those here.
SUPERVISED = "service"


def named(paths: Mapping[Words, Any]) -> Any:
    return pytest.mark.parametrize("path", list(paths), ids=lambda path: " ".join(path) or "claudectl")


# help


@named(TREE)
def test_its_help_has_an_example_of_itself_and_the_global_options(invoke: Invoke, path: Words) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert "Global options:" in result.stdout
    own = examples(TREE[path])
    assert own, "no line begins with `claudectl`"
    assert any(words[: len(path) + 1] == ["claudectl", *path] for words in own), own


@named(TREE)
def test_its_examples_are_said_as_its_options_are(path: Words) -> None:
    for words in examples(TREE[path]):
        parse(words[1:])


@named(TREE)
def test_every_option_and_argument_says_what_it_is(path: Words) -> None:
    command = TREE[path]
    assert command.help
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"{param.opts} has no help"
    names = [param.name for param in command.params if isinstance(param, GlobalOption)]
    assert names == ["socket", "json", "timeout", "version"]


def examples(command: click.Command) -> list[list[str]]:
    """Each example's words, up to where the shell takes over."""
    found: list[list[str]] = []
    for line in (command.help or "").splitlines():
        words = line.strip().removeprefix("sudo ")
        if words.startswith("claudectl "):
            found += _commands(words)
    return found


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in lexer:
        if word[0] in "|&;<>()":
            break
        words.append(word)
    yield words


def parse(args: list[str]) -> None:
    """Raises click's UsageError where these words are no command of ours. Runs nothing."""
    command: click.Command = cli
    ctx: click.Context | None = None
    while True:
        ctx = command.make_context(command.name, list(args), parent=ctx)
        args = [*ctx._protected_args, *ctx.args]
        if not isinstance(command, click.Group) or not args:
            return
        name, below, args = command.resolve_command(ctx, args)
        assert below is not None, name
        command = below


# without a daemon


@named({path: command for path, command in LEAVES.items() if path[0] != SUPERVISED and path not in LOCAL})
def test_without_a_daemon_it_says_so_with_4(
    invoke: Invoke, daemon: Daemon, path: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.leave()
    monkeypatch.chdir(tmp_path)  # some write a file where they are
    result = invoke(*path, *arguments(path, tmp_path))
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.splitlines() == [
        "error: claude-daemon is not running: no control socket answers; tried:",
        f"  {daemon.path}  (no such socket)",
        "Start it with: claude-daemon run",
    ]


# as JSON


DOCUMENT = {
    "id": "x",
    "name": "x",
    "key": "cd_x",
    "status": "pass",
    "state": "ready",
    "ok": True,
    "data": [],
    "next": None,
    "values": [],
    "url": "http://127.0.0.1:1",
}
ENDED = {"task": "task_1", "seq": 1, "type": "task.succeeded", "data": {}}
STREAMS: Mapping[str, list[Mapping[str, Any]]] = {
    "tasks": [ENDED],
    "tasks/x/events": [ENDED],
    "events": [SNAPSHOT, STOPPING],
    "drain": [{"state": "draining"}, {"state": "drained", "saved": True}],
    "stop": [{"state": "stopping", "saved": True}],
}


def log(directory: Path) -> Path:
    """A daemon's, of one line."""
    file = directory / "daemon.log"
    line = {"ts": "2026-11-27T17:22:05.000Z", "level": "info", "event": "daemon.ready", "logger": "claude_daemon"}
    file.write_text(f"{json.dumps(line)}\n")
    return file


def answer(reply: Reply, log: Path) -> None:
    """Something for everybody."""
    seen = reply.request_seen
    lines = STREAMS.get(seen.path)
    if lines is not None and "ndjson" in seen.headers["Accept"]:
        if seen.path == "stop":  # whoever waits for the daemon's end waits for its socket to go
            reply.server.path.unlink()
        reply.lines(*lines)
    else:
        reply.document({**DOCUMENT, "log": {"file": str(log)}})


@named({path: command for path, command in LEAVES.items() if path[0] != SUPERVISED})
def test_with_json_it_prints_json_and_nothing_else(
    invoke: Invoke, daemon: Daemon, path: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.otherwise = partial(answer, log=log(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = invoke(*path, *arguments(path, tmp_path), "--json")
    assert result.exit_code in (0, 1, 3), result.stderr
    assert is_json(result.stdout), result.stdout


def is_json(text: str) -> bool:
    """One document, or a line each."""
    try:
        json.loads(text)
    except ValueError:
        return bool(text) and all(isinstance(json.loads(line), dict) for line in text.splitlines())
    return True


# what a command must be told

GIVEN: Mapping[Words, list[str]] = {
    ("workers", "scale"): ["--workers", "2"],
    ("tasks", "purge"): ["--before", "30d"],
    ("run",): ["hello"],
    ("test",): ["live"],
}


def arguments(path: Words, directory: Path) -> list[str]:
    """As few as it can do with."""
    if path in GIVEN:
        return GIVEN[path]
    return [
        _sample(param, directory) for param in TREE[path].params if isinstance(param, click.Argument) and param.required
    ]


def _sample(argument: click.Argument, directory: Path) -> str:
    if isinstance(argument.type, click.Choice):
        return str(argument.type.choices[0])
    return str(directory / "new") if argument.name == "file" else "x"
