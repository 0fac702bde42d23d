"""``claudectl sessions``."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

import click

from claudectl import consent, moment
from claudectl.client import below
from claudectl.options import Group, Options, note
from claudectl.render import Document, Paint, documents, known, plain, screen, table

# The daemon gives no more at once.
MAX_PAGE = 100


@click.group(cls=Group, name="sessions")
def command() -> None:
    """Sessions: conversations that several tasks continue.

    \b
    Examples:
      claudectl sessions list
      claudectl run --session sess_01k8... "And then?"
    """


@command.command("list")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), metavar="N", help="At most so many.")
@click.option("--cursor", metavar="C", help="Go on where an earlier list ended.")
@click.pass_obj
def list_(options: Options, limit: int | None, cursor: str | None) -> None:
    """List every key's sessions, the newest first.

    The state is running while a turn waits or runs, warm while a process is kept for the next one, else idle.

    \b
    Examples:
      claudectl sessions list
      claudectl sessions list --json | jq -r '.data[] | select(.state == "idle") | .id'
    """
    query = [(name, str(value)) for name, value in (("limit", limit), ("cursor", cursor)) if value is not None]
    asked = urlencode(query, errors="surrogateescape")
    _, document = options.client().get(f"sessions?{asked}" if asked else "sessions")
    options.show(document, _sessions)
    if document.get("next") is not None and not options.json:
        note(f"there are more: --cursor {plain(document['next'])}")


@command.command("show")
@click.argument("session_id", metavar="ID")
@click.pass_obj
def show(options: Options, session_id: str) -> None:
    """Show a session: whose it is, how it is, and where it works.

    \b
    Example:
      claudectl sessions show sess_01k8...
    """
    _, document = options.client().get(below("sessions", session_id))
    options.show(document, _session)


@command.command("delete")
@click.argument("session_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask, not even on a terminal.")
@click.pass_obj
def delete(options: Options, session_id: str, yes: bool) -> None:
    """Delete a session, with what was said in it and the files of its own directory.

    While a turn of it waits or runs, that is a conflict, 7. Its tasks stay.

    \b
    Example:
      claudectl sessions delete sess_01k8... --yes
    """
    if not yes:
        consent.ask(f"Delete {plain(session_id)} and all that was said in it?", otherwise="nothing was deleted")
    document = options.client().delete(below("sessions", session_id))
    options.show(document, lambda answer, _: f"{plain(answer.get('id'))} deleted")


_HEADER = ("ID", "STATE", "KEY", "CREATED", "USED", "CWD")


def _sessions(document: Document, paint: Paint) -> str:
    rows = [_row(session) for session in documents(document.get("data"))]
    return table(_HEADER, rows, paint, right=frozenset()) if rows else "no sessions"


def _row(session: Document) -> list[str]:
    return [
        *(plain(session.get(fact)) for fact in ("id", "state", "key_id")),
        *(moment.told(session.get(at)) for at in ("created_at", "used_at")),
        known(session.get("cwd")),
    ]


def _session(document: Document, paint: Paint) -> str:
    return screen(f"{plain(document.get('id'))} · {paint(plain(document.get('state')))}", _facts(document))


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    yield "key", known(document.get("key_id"))
    for key, name in (("created_at", "created"), ("used_at", "used")):
        yield name, moment.told(document.get(key))
    yield "cwd", known(document.get("cwd"))
    more = document.get("add_dirs")
    yield "add dirs", ", ".join(plain(path) for path in more) if isinstance(more, list) else ""
