"""``claudectl stacks``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

from claudectl.options import Command, Options
from claudectl.render import Document, Paint, plain, texts


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
    return "\n\n".join(block for kind in ("task", "thread") for block in _blocks(kind, document.get(f"{kind}s")))


def _blocks(kind: str, listed: object) -> Iterator[str]:
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, Mapping):
            head = [f"{kind} {plain(entry.get('name'))}"]
            head += [plain(entry[key]) for key in ("coroutine", "state") if key in entry]
            yield "\n".join([" · ".join(head), *(f"  {line}" for line in texts(entry.get("stack")))])
