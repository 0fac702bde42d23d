"""``claudectl test``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from claudectl.client import Client
from claudectl.errors import Denied, Exit, Mismatch, TimedOut
from claudectl.figures import brief
from claudectl.options import Command, Options
from claudectl.progress import Progress
from claudectl.render import Document, Paint, documents, plain, table, texts

QUESTION_SECONDS: Final = 120.0
"""How long the daemon may be silent: a cold agent and a busy model take some tens of seconds."""
# As claudectl.smoke has them, which only this command imports; a test compares.
NAMES: Final = ("live", "ready", "direct", "text", "stream", "task", "websocket", "agent", "session")


@click.command(cls=Command, name="test")
@click.argument("names", metavar="[NAME]...", nargs=-1, type=click.Choice(NAMES))
@click.option("--model", metavar="M", help="Ask this model; without it engine.default_model.")
@click.option("--key-file", metavar="FILE", help="The key to ask with; without it that of the daemon's home.")
@click.pass_obj
def command(options: Options, names: Sequence[str], model: str | None, key_file: str | None) -> None:
    """Ask the running daemon a few questions, in every lane that serves and in every way to ask; 1 when one fails.

    \b
    live, ready      the probes
    direct, text     a chat in that lane
    stream           a chat that is answered in pieces
    task, websocket  a durable task, followed by server-sent events, and over the WebSocket
    agent, session   a task with tools, and one in a session, over the control socket

    Without NAME all of them: seven small calls of the model, which cost what they cost. FIRST is the time to the
    first delta.

    \b
    Examples:
      claudectl test
      claudectl test live ready
      claudectl test --model haiku --json | jq '.tests[] | select(.status == "failed")'
    """
    from claudectl.smoke import QUESTIONS, Smoke
    from claudectl.web import Web

    ends_at = None if options.timeout_seconds is None else time.monotonic() + options.timeout_seconds
    asked = [name for name in QUESTIONS if not names or name in names]
    client = options.client()
    _, status = client.get("status")
    wished = model or _default_model(client)
    key = _key(key_file or status.get("key_file")) if any(QUESTIONS[name].keyed for name in asked) else None
    results = []
    for name in asked:
        left = _left(ends_at, options.timeout_seconds)
        web = Web(str(status.get("url")), key, min(QUESTION_SECONDS, left))
        control = partial(Client, [client.path], timeout_seconds=min(QUESTION_SECONDS, left))
        smoke = Smoke(web=web, control=control, lanes=texts(status.get("lanes")), model=wished)
        with Progress(_asking(name), wanted=not options.json):
            results.append(smoke.run(name).document())
    _left(ends_at, options.timeout_seconds)
    document = {"ok": all(result["status"] != "failed" for result in results), "tests": results}
    options.show(document, _table)
    click.get_current_context().exit(Exit.DONE if document["ok"] else Exit.FAILED)


def _default_model(client: Client) -> str:
    _, config = client.get("config")
    rows = documents(config.get("values"))
    return next((str(row.get("value")) for row in rows if row.get("key") == "engine.default_model"), "sonnet")


def _asking(name: str) -> Any:
    return lambda elapsed_seconds: f"{name} · {elapsed_seconds:.1f} s"


def _left(ends_at: float | None, seconds: float | None) -> float:
    """Raises TimedOut."""
    left = QUESTION_SECONDS if ends_at is None else ends_at - time.monotonic()
    if left <= 0:
        raise TimedOut(f"timed out after {seconds:g} s")
    return left


def _key(file: object) -> str:
    if not isinstance(file, str):
        raise Mismatch("the daemon does not say where its key is")
    try:
        key = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it holds no key"
        hint = "use the daemon's user, or root, or name a key of yours with --key-file"
        raise Denied(f"{plain(file)}: {why}; {hint}") from None
    if not key.isascii() or not key.isprintable() or not key:
        raise Denied(f"{plain(file)}: it holds no key")
    return key


_HEADER = ("TEST", "RESULT", "TIME", "FIRST", "")


def _table(document: Document, paint: Paint) -> str:
    rows = [_row(result) for result in documents(document.get("tests"))]
    return table(_HEADER, rows, paint, right=frozenset({"TIME", "FIRST"}))


def _row(result: Document) -> list[str]:
    skipped = result.get("status") == "skipped"
    return [
        plain(result.get("name")),
        plain(result.get("status")),
        "" if skipped else brief(result.get("seconds")),
        "" if result.get("first_delta_seconds") is None else brief(result["first_delta_seconds"]),
        plain(result.get("detail")),
    ]
