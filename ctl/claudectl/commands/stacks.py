"""``claudectl stacks``."""

from __future__ import annotations

import click

from claudectl.options import Command, Options
from claudectl.render import Document, Paint, documents, plain, texts


@click.command(cls=Command, name="stacks")
@click.pass_obj
def command(options: Options) -> None:
    """Show where every task and thread of the daemon is now, the innermost call last.

    For the report of a daemon that hangs.

    \b
    Examples:
      claudectl stacks
      claudectl stacks --json | jq -r '.tasks[] | "\\(.name) \\(.stack[-1])"'
    """
    _, document = options.client().get("stacks")
    options.show(document, _stacks)


def _stacks(document: Document, _: Paint) -> str:
    kinds = (("task", "tasks"), ("thread", "threads"))
    return "\n\n".join(_block(kind, entry) for kind, key in kinds for entry in documents(document.get(key)))


def _block(kind: str, entry: Document) -> str:
    head = [f"{kind} {plain(entry.get('name'))}"]
    head += [plain(entry[key]) for key in ("coroutine", "state") if key in entry]
    return "\n".join([" · ".join(head), *(f"  {line}" for line in texts(entry.get("stack")))])
