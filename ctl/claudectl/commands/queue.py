"""``claudectl queue``."""

from __future__ import annotations

import click

from claudectl.options import Group, Options
from claudectl.render import Document, Paint


@click.group(cls=Group, name="queue")
def command() -> None:
    """The tasks that wait for their turn.

    \b
    Examples:
      claudectl queue pause
      claudectl queue resume
    """


@command.command("pause")
@click.pass_obj
def pause(options: Options) -> None:
    """Begin no queued task until `queue resume`, restarts included.

    What runs goes on; tasks are still accepted, and chats still answered.

    \b
    Example:
      claudectl queue pause
    """
    options.show(options.client().post("queue/pause", {}), _paused)


@command.command("resume")
@click.pass_obj
def resume(options: Options) -> None:
    """Begin queued tasks again.

    \b
    Example:
      claudectl queue resume
    """
    options.show(options.client().post("queue/resume", {}), _paused)


def _paused(document: Document, _: Paint) -> str:
    return "paused" if document.get("paused") else "resumed"
