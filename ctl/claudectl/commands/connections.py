"""``claudectl connections``."""

from __future__ import annotations

import click

from claudectl.client import below
from claudectl.options import Group, Options
from claudectl.render import Document, Paint, documents, duration, plain, size, table


@click.group(cls=Group, name="connections", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Who is connected to the public port, and what for; without a command: list.

    \b
    Examples:
      claudectl connections
      claudectl connections close conn_17
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@command.command("list")
@click.pass_obj
def list_(options: Options) -> None:
    """List the connections, the oldest first.

    \b
    Examples:
      claudectl connections list
      claudectl connections list --json | jq '.connections[] | select(.state == "websocket") | .id'
    """
    _, document = options.client().get("connections")
    options.show(document, _connections)


@command.command("close")
@click.argument("connection_id", metavar="ID")
@click.pass_obj
def close(options: Options, connection_id: str) -> None:
    """Close connection ID, with whatever it waits for; durable tasks go on.

    \b
    Example:
      claudectl connections close conn_17
    """
    options.show(options.client().delete(below("connections", connection_id)), _closed)


def _closed(document: Document, _: Paint) -> str:
    return f"{plain(document.get('id'))} closed"


_HEADER = ("ID", "PEER", "STATE", "AGE", "REQUESTS", "UNSENT", "KEY", "REQUEST ID", "PATH")


def _connections(document: Document, paint: Paint) -> str:
    rows = [_row(connection) for connection in documents(document.get("connections"))]
    return table(_HEADER, rows, paint, right=frozenset({"REQUESTS", "UNSENT"})) if rows else "no connections"


def _row(connection: Document) -> list[str]:
    return [
        *(plain(connection.get(key)) for key in ("id", "peer", "state")),
        duration(connection.get("age_seconds")),
        plain(connection.get("requests")),
        size(connection.get("unsent_bytes")),
        *(plain(connection.get(key)) for key in ("key_id", "request_id", "path")),
    ]
