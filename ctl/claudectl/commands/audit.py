"""``claudectl audit``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlencode

import click

from claudectl import moment
from claudectl.errors import Exit
from claudectl.options import Group, Options
from claudectl.render import Document, Paint, documents, known, plain, table

# The daemon gives no more at once.
MAX_PAGE = 1000
# A year of a busy service may be millions of records: ten microseconds for each.
VERIFY_SECONDS = 600.0
_MAX_TOLD = 80


@click.group(cls=Group, name="audit", invoke_without_command=True)
@click.option(
    "--limit", type=click.IntRange(1, MAX_PAGE), metavar="N", default=100, help="The last N; without it, 100."
)
@click.option("--act", metavar="A", help="Only this act, like key.created, or all of a noun, like key.")
@click.option("--since", metavar="AGE|DATE", help="Only what is younger: 12h, 30d, or a date like 2026-01-31.")
@click.option("--request", metavar="ID", help="Only what is about this request.")
@click.option("--task", metavar="ID", help="Only what is about this task.")
@click.pass_context
def command(
    ctx: click.Context, limit: int, act: str | None, since: str | None, request: str | None, task: str | None
) -> None:
    """What was done, by which key or Unix user: the last records, oldest first.

    The records are a chain: each is sealed with the one before, under a key beside the database; verify follows it.

    \b
    Examples:
      claudectl audit --act key --since 30d
      claudectl audit --limit 1000 --json | jq '.data[] | select(.peer_uid == 0)'
      claudectl audit verify
    """
    if ctx.invoked_subcommand is not None:
        return
    query = [("limit", str(limit))]
    query += [(name, one) for name, one in (("act", act), ("request", request), ("task", task)) if one is not None]
    query += [("since", str(_moment(since)))] if since is not None else []
    options = ctx.ensure_object(Options)
    _, document = options.client().get(f"audit?{urlencode(query, errors='surrogateescape')}")
    options.show(document, _records)


def _moment(text: str) -> float:
    try:
        return moment.before(text, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from None


@command.command("verify")
@click.option("--anchor", metavar="HEAD", help="A record's number and seal, as an audit.head line of the log has it.")
@click.pass_context
def verify(ctx: click.Context, anchor: str | None) -> None:
    """Go through the whole chain; 1 when a record was changed, inserted, moved or taken out.

    That the end was cut off is only found with an anchor: a head that was written down elsewhere, which the log does
    once a minute.

    \b
    Examples:
      claudectl audit verify
      claudectl audit verify --anchor 1042:9f3c...
    """
    options = ctx.ensure_object(Options)
    query = "" if anchor is None else "?" + urlencode({"anchor": anchor}, errors="surrogateescape")
    _, document = options.client().get(f"audit/verify{query}", patience_seconds=VERIFY_SECONDS)
    options.show(document, _verdict)
    if document.get("ok") is not True:
        ctx.exit(Exit.FAILED)


_HEADER = ("N", "WHEN", "ACT", "KEY", "UID", "TASK", "DETAILS")


def _records(document: Document, paint: Paint) -> str:
    rows = [_row(record) for record in documents(document.get("data"))]
    return table(_HEADER, rows, paint, right=frozenset({"N"})) if rows else "no records"


def _row(record: Document) -> list[str]:
    details = record.get("details")
    told = " ".join(f"{name}={plain(value)}" for name, value in details.items()) if isinstance(details, Mapping) else ""
    return [
        plain(record.get("n")),
        moment.told(record.get("at")),
        plain(record.get("act")),
        *(known(record.get(fact)) for fact in ("key_id", "peer_uid", "task_id")),
        known(told if len(told) <= _MAX_TOLD else f"{told[:_MAX_TOLD]}…"),
    ]


def _verdict(document: Document, _: Paint) -> str:
    records, pruned = document.get("records"), document.get("pruned")
    if document.get("ok") is True:
        lines = [f"the chain holds: {plain(records)} records"]
    else:
        where = f"record {plain(document['at'])}: " if document.get("at") is not None else ""
        lines = [f"the chain is broken: {where}{plain(document.get('broken'))}"]
    if pruned:
        lines.append(f"records 1 to {plain(pruned)} were pruned")
    if document.get("head") is not None:
        lines.append(f"head {plain(document['head'])}")
    return "\n".join(lines)
