"""``claudectl run``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from claudectl.client import Client, StreamCut
from claudectl.errors import BadInput, ControlError, Interrupted, Mismatch, TimedOut
from claudectl.follow import ENDED, Reader, task_path
from claudectl.options import Command, Options, note, seconds
from claudectl.render import Document, Paint, plain

# Somebody who pressed Ctrl-C waits for the prompt; the daemon writes one row.
CANCEL_SECONDS = 2.0


def _metadata(_: click.Context, __: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    entries: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        if key in entries:
            raise click.BadParameter(f"{key!r} is given twice")
        entries[key] = value
    return entries


def _rules(_: click.Context, __: click.Parameter, given: str | None) -> Sequence[str]:
    """Separated by commas; a pattern in brackets holds none."""
    return [rule.strip() for rule in (given or "").split(",") if rule.strip()]


@click.command(cls=Command, name="run")
@click.argument("prompt", required=False)
@click.option("--model", metavar="NAME", help="An alias or a model's name instead of engine.default_model.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--append-system", metavar="TEXT", help="What is added to the system prompt.")
@click.option("--schema", metavar="FILE", help="A file with the JSON schema that the answer must satisfy.")
@click.option("--allow-tools", metavar="RULES", callback=_rules, help="What the agent may use: Read,Bash(git *).")
@click.option("--deny-tools", metavar="RULES", callback=_rules, help="What it may not; always wins.")
@click.option("--approval", type=click.Choice(["never", "ask", "auto"]), help="For what no rule allows. Usually never.")
@click.option("--cwd", metavar="DIR", help="Where the agent works, under a configured root.")
@click.option("--add-dir", "add_dirs", multiple=True, metavar="DIR", help="Another directory. May be repeated.")
@click.option("--max-turns", type=int, metavar="N", help="Answers of models at most, subagents' included.")
@click.option("--max-cost-usd", type=float, metavar="USD", help="No further model call once so much is spent.")
@click.option("--priority", type=int, metavar="N", help="Which waiting task is first: the higher. Usually 0.")
@click.option("--timeout-s", type=seconds, metavar="S", help="The task fails when it is not over after S seconds.")
@click.option(
    "--metadata", multiple=True, callback=_metadata, metavar="KEY=VALUE", help="Kept with the task. May be repeated."
)
@click.option(
    "--session", metavar="ID|new", help="The conversation to go on with, or a new one, whose id is told on stderr."
)
@click.option("--fork", is_flag=True, help="Go on with a copy of that session, and leave it as it is.")
@click.option("--detach", is_flag=True, help="Print the task's id when it is accepted, and leave.")
@click.pass_obj
def command(
    options: Options,
    /,
    prompt: str | None,
    schema: str | None,
    session: str | None,
    fork: bool,
    detach: bool,
    allow_tools: Sequence[str],
    deny_tools: Sequence[str],
    approval: str | None,
    cwd: str | None,
    add_dirs: Sequence[str],
    **asked: object,
) -> None:
    """Run PROMPT as a task and print its answer as it comes.

    Without PROMPT, or with -, the prompt is read from stdin. Ctrl-C cancels the task; it goes on when claudectl
    ends in any other way. What an agent does is told on stderr, and the id of a new session; with --approval ask it is
    asked on a terminal. Rules with a pattern keep an agent tidy; they confine nothing: only the sandbox does.

    \b
    Examples:
      claudectl run "Why is the sky blue?"
      claudectl run --session sess_01k8... "And why is it red at night?"
      git diff | claudectl run --system "Review this diff." --model haiku
      claudectl tasks follow "$(claudectl run --detach - < prompt.txt)"
      claudectl run "Fix the failing test." --allow-tools 'Read,Edit,Bash(pytest *)' --cwd .
    """
    if fork and session in (None, "new"):
        raise click.UsageError("--fork needs the --session to go on with a copy of")
    body: dict[str, Any] = {"prompt": _prompt(prompt)}
    tools = {"allow": allow_tools, "deny": deny_tools, "approval": approval}
    if tools := {name: value for name, value in tools.items() if value}:
        body["tools"] = tools
    if cwd is not None:
        body["cwd"] = os.path.realpath(cwd)
    if add_dirs:
        body["add_dirs"] = [os.path.realpath(path) for path in add_dirs]
    body |= {name: value for name, value in asked.items() if value is not None and value != {}}
    if session is not None:
        body["session"] = {} if session == "new" else {"id": session} | ({"fork": True} if fork else {})
    if schema is not None:
        body["schema"] = _schema(schema)
    _require_unicode(body)
    begins = session == "new" or fork
    if detach:
        task = options.client().post("tasks?detach=true", body)
        options.show(task, _id)
        if begins:
            _tell_session(task)
    else:
        _run(options, body, begins=begins)


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        prompt = given
    elif given is None and sys.stdin.isatty():
        raise click.UsageError("no prompt: give one, or - to type it on stdin")
    else:
        prompt = _read_stdin()
    if not prompt:
        raise click.UsageError("the prompt is empty")
    return prompt


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"stdin is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}") from None


def _schema(path: str) -> Document:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs milliseconds
            schema = json.load(file)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise BadInput(f"{path} is no schema: not a JSON object")
    return schema


def _require_unicode(body: Document) -> None:
    """Arguments that are no UTF-8 arrive with lone surrogates, which JSON for others cannot carry."""
    for name, value in body.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadInput(f"{name} is not UTF-8") from None


def _id(task: Document, _: Paint) -> str:
    if not task.get("id"):
        raise Mismatch("the daemon did not say the task's id")
    return plain(task["id"])


def _tell_session(task: Document) -> None:
    """What the next turn is to name; nobody else says it."""
    if task.get("session_id") is not None:
        note(f"session {plain(task['session_id'])}")


def _run(options: Options, body: Document, *, begins: bool) -> None:
    """``begins``: a session, whose id is told."""
    client = options.client()

    def begun(task_id: str) -> None:
        if begins:
            with contextlib.suppress(ControlError):  # the task goes on, and `tasks show` has it
                _tell_session(client.get(task_path(task_id))[1])

    asks = client if _asks(body) and sys.stdin.isatty() else None
    with Reader(raw=options.json, asks=asks, begun=begun) as reader:
        try:
            with client.stream("tasks", body) as lines:
                end = reader.read(lines)
        except (StreamCut, TimedOut) as error:
            raise type(error)(f"{error}{reader.how_to_go_on()}") from None
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted: {_cancel(client, reader.task_id)}") from None
    end.conclude()


def _asks(body: Document) -> bool:
    tools = body.get("tools")
    return isinstance(tools, dict) and tools.get("approval") == "ask"


def _cancel(client: Client, task_id: str | None) -> str:
    """Cancels the task as well as it can; what became of that."""
    if task_id is None:
        return "the daemon may have accepted the task (see: claudectl tasks list)"
    try:
        # not bounded by --timeout, which may be almost over
        task = Client([client.path], timeout_seconds=CANCEL_SECONDS).post(task_path(task_id, "/cancel"), {})
    except ControlError as error:
        return f"the task could not be cancelled: {error}"
    except KeyboardInterrupt:
        return f"the task may go on (see: claudectl tasks show {plain(task_id)})"
    state = task.get("state")
    return f"the task had {plain(state)} already" if state in ENDED - {"cancelled"} else "the task is cancelled"
