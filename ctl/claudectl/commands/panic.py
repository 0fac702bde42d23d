"""``claudectl panic``."""

from __future__ import annotations

import click

from claudectl import consent
from claudectl.options import Command, Options
from claudectl.render import Document, Paint, plain, texts

QUESTION = "Cut everything that runs, pause the queue and refuse new work?"
BACK = "Take work again with: claudectl undrain && claudectl queue resume"


@click.command(cls=Command, name="panic")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@click.pass_obj
def command(options: Options, yes: bool) -> None:
    """Cut everything that runs, at once; the daemon stays up and begins nothing.

    Workers are killed, the queue is paused, new work is refused. Tasks that may run twice are queued again, the
    others fail. Back in two steps: `undrain` takes work again, `queue resume` begins queued tasks.

    \b
    Examples:
      claudectl panic
      claudectl panic --yes && claudectl tasks list
    """
    if not yes:
        consent.ask(QUESTION, otherwise="nothing was cut")
    options.show(options.client().post("panic", {}), _cut)


def _cut(document: Document, paint: Paint) -> str:
    killed = texts(document.get("killed"))
    told = [paint(plain(document.get("state"))), f"{len(killed)} workers killed"]
    if document.get("paused"):
        told.append("queue paused")
    return f"{' · '.join(told)}\n{BACK}"
