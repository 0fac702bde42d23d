"""``claudectl workers``."""

from __future__ import annotations

import click

from claudectl import render
from claudectl.client import below
from claudectl.options import Group, Options
from claudectl.render import Document, Paint, plain, texts


@click.group(cls=Group, name="workers")
def command() -> None:
    """The Claude Code processes: text workers, agents and their spares, sessions.

    \b
    Examples:
      claudectl workers list
      claudectl workers scale --workers 8
    """


@command.command("list")
@click.pass_obj
def list_(options: Options) -> None:
    """List the workers of every lane: state, turns, age, memory, and whose they are.

    \b
    Examples:
      claudectl workers list
      claudectl workers list --json | jq '.workers[].pid'
    """
    _, document = options.client().get("workers")
    options.show(document, render.workers)


@command.command("scale")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="So many turns at once (engine.workers).")
@click.option("--spares", type=click.IntRange(min=0), metavar="N", help="So many unbound and idle (engine.spares).")
@click.pass_obj
def scale(options: Options, workers: int | None, spares: int | None) -> None:
    """Change how many turns run at once, over all lanes, and how many workers there are for them.

    What runs goes on. Holds until the next restart, or a reload that changes these settings.

    \b
    Examples:
      claudectl workers scale --workers 8
      claudectl workers scale --workers 2 --spares 0
    """
    asked = {name: count for name, count in (("workers", workers), ("spares", spares)) if count is not None}
    if not asked:
        raise click.UsageError("say --workers N, --spares N or both")
    options.show(options.client().post("workers/scale", asked), _sizes)


def _sizes(document: Document, _: Paint) -> str:
    return " · ".join(f"{plain(document.get(name))} {name}" for name in ("workers", "spares"))


@command.command("recycle")
@click.argument("worker_id", metavar="[ID]", required=False)
@click.option("--all-at-once", is_flag=True, help="All idle ones together, not one after another.")
@click.pass_obj
def recycle(options: Options, worker_id: str | None, all_at_once: bool) -> None:
    """Replace worker ID, or all workers, by new processes; busy ones after their turn.

    An agent's process ends with its turn anyway. A session's next turn resumes it on a new one.

    \b
    Examples:
      claudectl workers recycle
      claudectl workers recycle w_3
    """
    if worker_id is None:
        options.show(options.client().post("workers/recycle", {"rolling": not all_at_once}), _recycling)
    elif all_at_once:
        raise click.UsageError("--all-at-once is for all workers, not for one")
    else:
        options.show(options.client().post(below("workers", worker_id, "recycle"), {}), _one)


def _recycling(document: Document, _: Paint) -> str:
    ids = texts(document.get("recycling"))
    return f"recycling {', '.join(ids)}" if ids else "no workers"


@command.command("kill")
@click.argument("worker_id", metavar="ID")
@click.pass_obj
def kill(options: Options, worker_id: str) -> None:
    """Kill worker ID at once; its turn is tried again where that is safe.

    \b
    Example:
      claudectl workers kill w_3
    """
    options.show(options.client().post(below("workers", worker_id, "kill"), {}), _one)


def _one(document: Document, paint: Paint) -> str:
    return f"{plain(document.get('id'))} {paint(plain(document.get('state')))}"
